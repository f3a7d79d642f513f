"""Find the files of a MindSpore or MindFormers checkpoint.

Folders: mindformers 1.9, ``core/callback/callback.py`` (``output/checkpoint/rank_N``,
``checkpoint_network``), ``checkpoint/utils.py`` (``iteration_%08d``), ``models/modeling_utils.py``
(``output/strategy``); mindspore 2.9, ``parallel/transform_safetensors.py`` (``unified_safetensors``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from ckptconv.containers.mindspore.mindspore import is_mindspore
from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.places.regular import read_head
from ckptconv.plans.checkpoint import Note
from ckptconv.plugins import later
from ckptconv.readers.reader import Save
from ckptconv.records import dataclass

__all__ = ["NAME_MAP", "Found", "Step", "find", "looks_like_mindspore", "saves"]

# Beside a folder of ranks alone: every path is asked whether it is MindSpore's.
find_strategies = later("ckptconv.dialects.mindformers.strategy:find_strategies")

Kind = Literal["file", "ranks", "named", "iteration"]
Step = tuple[int, int]

NAME_MAP = "param_name_map.json"
_TRACKER = "latest_checkpointed_iteration.txt"
_METADATA = "metadata.json"
_SUFFIXES = (".ckpt", ".safetensors")
_RANK = re.compile(r"rank_(\d{1,7})")
_ITERATION = re.compile(r"iteration_(\d{8,})")
_IN_NAME = re.compile(r".*_rank_(\d{1,7})(?:_\d+)?(?:-\d+_\d+)?")  # of a stem
_STEP = re.compile(r".*-(\d+)_(\d+)")  # of a stem: epoch, step
_INSIDE = ("checkpoint", "checkpoint_network")
_HUGGING_FACE = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint's files.

    Attributes:
        root: The folder to look for a configuration in.
        data: The folder or file the weights lie in.
        kind: ``file``; ``ranks``, a file each; ``named`` by a map of names to files, or just together; or an
            ``iteration`` with its metadata.
        files: The files; those of ranks by ascending rank.
        ranks: The rank of each file, for ``ranks``; for ``file``, the ranks whose files are beside it.
        step: Epoch and step in the files' names.
    """

    root: Path
    data: Path
    kind: Kind
    files: tuple[Path, ...]
    ranks: tuple[int, ...] = ()
    step: Step | None = None
    notes: tuple[Note, ...] = ()


def looks_like_mindspore(path: Path) -> bool:
    """Whether a path is a folder or file that MindSpore or MindFormers leaves."""
    if path.is_file():
        if path.name in (NAME_MAP, _TRACKER, _METADATA):
            return looks_like_mindspore(path.parent)
        return path.suffix in _SUFFIXES and is_mindspore(path)
    if not path.is_dir():
        return False
    if _iterations(path) or (path / NAME_MAP).is_file():
        return True
    if folders := _rank_folders(path):
        return any(p.suffix in _SUFFIXES and is_mindspore(p) for p in folders[0][1].iterdir())
    if _ITERATION.fullmatch(path.name) or any(looks_like_mindspore(path / n) for n in _INSIDE):
        return True
    return bool(_own_files(path))


def find(path: Path, tag: str | None = None, *, strategy: bool = False) -> Found:
    """Find the checkpoint meant by a run's folder, one of its folders or files.

    Args:
        path: What the user named.
        tag: The save to read instead of the newest: ``EPOCH_STEP``.
        strategy: Whether the user gave strategy files; a rank's file then is one of many.

    Raises:
        FormatError: if files are missing or named as MindSpore does not.
        UsageError: if several checkpoints are there and none is chosen.
        PlanError: if the newest save lacks a rank.
    """
    if path.is_file():
        return _of_file(path, strategy)
    if iterations := _iterations(path):
        return _iteration(path, iterations)
    if _ITERATION.fullmatch(path.name):
        return _one_iteration(path.parent, path, ())
    if (path / NAME_MAP).is_file():
        return Found(path, path / NAME_MAP, "named", (path / NAME_MAP,))
    if folders := _rank_folders(path):
        return _ranks(path, folders, tag)
    inside = [path / n for n in _INSIDE if (path / n).is_dir() and looks_like_mindspore(path / n)]
    if inside:
        found = find(inside[0], tag, strategy=strategy)
        more = [Note("info", f"{p.name} is there as well; {inside[0].name} is read") for p in inside[1:]]
        return Found(
            path, found.data, found.kind, found.files, found.ranks, found.step, (*found.notes, *more)
        )
    if _RANK.fullmatch(path.name) and (strategy or find_strategies(path.parent, None)):
        return find(path.parent, tag, strategy=strategy)
    return _plain(path, tag)


def _of_file(path: Path, strategy: bool) -> Found:
    """Find what a file belongs to."""
    folder = path.parent
    if path.name in (NAME_MAP, _TRACKER, _METADATA) or _ITERATION.fullmatch(folder.name):
        return find(folder)
    if path.suffix == ".safetensors" and (folder / NAME_MAP).is_file():
        return find(folder)
    in_folder, in_name = _RANK.fullmatch(folder.name), _IN_NAME.fullmatch(path.stem)
    if not in_folder and not in_name:
        return Found(folder, path, "file", (path,))
    home = folder.parent if in_folder else folder
    if strategy or find_strategies(home, None):
        step = _STEP.fullmatch(path.stem)
        return find(home, f"{step[1]}_{step[2]}" if step else None, strategy=strategy)
    if in_folder:
        ranks = [rank for rank, _ in _rank_folders(home)]
    else:
        ranks = sorted({int(m[1]) for p in _own_files(home) if (m := _IN_NAME.fullmatch(p.stem))})
    notes: tuple[Note, ...] = ()
    if ranks != [0]:
        many = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
        text = f"no strategy file says how ranks {many} cut the tensors: {path.name} is taken as whole"
        notes = (Note("warning", text),)
    return Found(home, path, "file", (path,), tuple(ranks), notes=notes)


# iteration_%08d


def _iterations(path: Path) -> list[tuple[int, Path]]:
    if not path.is_dir():
        return []
    found = ((_ITERATION.fullmatch(p.name), p) for p in path.iterdir())
    return sorted((int(m[1]), p) for m, p in found if m and p.is_dir())


def _iteration(path: Path, iterations: Sequence[tuple[int, Path]]) -> Found:
    there = ", ".join(str(n) for n, _ in iterations)
    notes: tuple[Note, ...] = ()
    if (path / _TRACKER).is_file():
        wanted = read_head(path / _TRACKER, 64).decode(errors="replace").strip()
    else:
        wanted = str(iterations[-1][0])
        notes = (Note("info", f"no {_TRACKER}; iteration {wanted} is the newest of {there}"),)
    number = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 20 else -1
    folder = dict(iterations).get(number)
    if folder is None:
        raise FormatError(
            f"{_TRACKER} names iteration {wanted!r}, which is not there",
            where=path,
            hint=f"the save may not have finished; give --step, one of {there}",
        )
    return _one_iteration(path, folder, notes)


def _one_iteration(root: Path, folder: Path, notes: tuple[Note, ...]) -> Found:
    if (folder / _METADATA).is_file():
        return Found(root, folder, "iteration", (folder / _METADATA,), notes=notes)
    files = tuple(sorted(p for p in folder.iterdir() if p.suffix == ".safetensors"))
    if not files:
        raise FormatError(f"no {_METADATA} and no safetensors file", where=folder)
    return Found(root, folder, "named", files, notes=notes)


# rank_N


def _rank_folders(path: Path) -> list[tuple[int, Path]]:
    """Folders of ranks that hold files, by number: rank_10 comes after rank_9."""
    found = []
    for p in path.iterdir() if path.is_dir() else ():
        if (m := _RANK.fullmatch(p.name)) and p.is_dir() and any(f.suffix in _SUFFIXES for f in p.iterdir()):
            found.append((int(m[1]), p))
    return sorted(found)


def _ranks(path: Path, folders: Sequence[tuple[int, Path]], tag: str | None) -> Found:
    files = [(rank, f) for rank, folder in folders for f in sorted(folder.iterdir()) if f.suffix in _SUFFIXES]
    for rank, file in files:
        named = _IN_NAME.fullmatch(file.stem)
        if named and int(named[1]) != rank:
            raise FormatError(
                f"{file.name} is of rank {named[1]}, but lies in rank_{rank}",
                where=path,
                hint="put every file back into the folder of its rank",
            )
    return _newest(path, files, tag)


def saves(path: Path) -> Iterator[Save]:
    """Yield the saves whose files lie beside each other: an epoch and a step in every name."""
    if not path.is_dir() or _iterations(path):
        return
    if folders := _rank_folders(path):
        files = [
            (rank, p) for rank, folder in folders for p in sorted(folder.iterdir()) if p.suffix in _SUFFIXES
        ]
    elif any(looks_like_mindspore(path / n) for n in _INSIDE):
        return  # the folder inside is the run's
    else:
        files = [(_rank_of(p), p) for p in _own_files(path)]
    ranks = {rank for rank, _ in files}
    held: dict[Step, dict[int, Path]] = {}
    for rank, file in files:
        if m := _STEP.fullmatch(file.stem):
            held.setdefault((int(m[1]), int(m[2])), {})[rank] = file
    for (epoch, step), found in sorted(held.items()):
        lack = ", ".join(str(r) for r in sorted(ranks - set(found))[:16])
        name = f"{epoch}_{step}"
        why = f"the file of rank {lack} is not there" if lack else None
        yield Save(step, name, path, name, tuple(found.values()), epoch, why)


def _rank_of(file: Path) -> int:
    """Return the rank in a file's name; 0 where it says none."""
    found = _IN_NAME.fullmatch(file.stem)
    return int(found[1]) if found else 0


def _newest(path: Path, files: Sequence[tuple[int, Path]], tag: str | None) -> Found:
    """Choose each rank's file of the newest save: by number, 10 comes after 9."""
    saves: dict[Step | None, dict[int, Path]] = {}
    for rank, file in files:
        m = _STEP.fullmatch(file.stem)
        step = (int(m[1]), int(m[2])) if m else None
        other = saves.setdefault(step, {}).setdefault(rank, file)
        if other != file:
            raise UsageError(
                f"rank {rank} has {other.name} and {file.name} of one save",
                where=path,
                hint="move one of them away, or name the folder that holds one save only",
            )
    stepped = sorted(s for s in saves if s is not None)
    there = ", ".join(f"{e}_{s}" for e, s in stepped)
    if tag is not None:
        chosen = next((s for s in stepped if f"{s[0]}_{s[1]}" == tag), None)
        if chosen is None:
            raise UsageError(f"no save {tag!r}", where=path, hint=f"give --step, one of {there or 'none'}")
    else:
        chosen = stepped[-1] if stepped else None
    found = saves[chosen]
    lack = sorted({rank for rank, _ in files} - set(found))
    if lack:
        name = "the unnumbered save" if chosen is None else f"save {chosen[0]}_{chosen[1]}"
        raise PlanError(
            f"{name} lacks rank {', '.join(map(str, lack[:16]))}",
            where=path,
            hint=f"the save may not have finished; give --step to read another one of {there}",
        )
    notes: tuple[Note, ...] = ()
    if len(saves) > 1 and tag is None and chosen is not None:
        notes = (Note("info", f"save {chosen[0]}_{chosen[1]} is the newest of {there}"),)
    ranks = tuple(sorted(found))
    return Found(path.parent, path, "ranks", tuple(found[r] for r in ranks), ranks, chosen, notes)


# A folder of files


def _own_files(path: Path) -> list[Path]:
    """MindSpore's files in a folder that is not a Hugging Face model's."""
    if any((path / n).exists() for n in _HUGGING_FACE):
        return []
    files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    return [p for p in files if "strategy" not in p.name and is_mindspore(p)]


def _plain(path: Path, tag: str | None) -> Found:
    files = _own_files(path)
    if not files:
        raise FormatError("no MindSpore checkpoint found", where=path)
    named = [(int(m[1]), p) for p in files if (m := _IN_NAME.fullmatch(p.stem))]
    if len(named) == len(files) and len({rank for rank, _ in named}) > 1:
        return _newest(path, sorted(named), tag)
    if all(re.fullmatch(r".*-\d+-of-\d+\.safetensors", p.name) for p in files):
        return Found(path, path, "named", tuple(files))
    steps = {(int(m[1]), int(m[2])) for p in files if (m := _STEP.fullmatch(p.stem))}
    if len(files) == 1 or len(steps) == len(files):
        found = _newest(path, [(0, p) for p in files], tag)
        return Found(path, found.files[0], "file", found.files, step=found.step, notes=found.notes)
    raise UsageError(
        f"{len(files)} checkpoints are in one folder",
        where=path,
        hint="name one of them: " + ", ".join(p.name for p in files[:8]),
    )
