"""Find the tag folder of a DeepSpeed run and sort its files by what they hold.

File names: deepspeed 0.19.8, ``runtime/engine.py`` (``_get_ckpt_name``, ``_get_zero_ckpt_name``,
``_get_expert_ckpt_name``), ``runtime/pipe/module.py`` (``ckpt_layer_path``) and
``checkpoint/ds_to_universal.py``; older spellings from the releases named at each pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field
from os.path import normpath
from pathlib import Path

from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.places.inside import is_inside
from ckptconv.places.regular import read_head
from ckptconv.plans.checkpoint import Note
from ckptconv.records import dataclass

__all__ = ["Run", "TagFiles", "find_run", "is_tag", "looks_like_deepspeed", "sort_files", "tags"]

# "zero_pp_rank_R" means data-parallel rank R: "partitioned parameters", not pipeline.
_MODEL = re.compile(r"(?:zero_pp_rank_(?P<dp>\d+)_)?mp_rank_(?P<mp>\d+)_model_states\.pt")
# No underscore before "optim" up to 0.3.13; the bf16_ prefix came with 0.6.2.
_OPTIM = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(?P<dp>\d+)_mp_rank_(?P<mp>\d+)_?optim_states\.pt")
_LAYER = re.compile(r"layer_(?P<layer>\d+)-(?:model_(?P<tp>\d+)-)?model_states\.pt")
# "layer_L_" came with 0.6.0.
_EXPERT = re.compile(r"(?:layer_(?P<layer>\d+)_)?expert_(?P<expert>\d+)_mp_rank_(?P<mp>\d+)_model_states\.pt")
_EXPERT_OPTIM = re.compile(r"expp_rank_(?P<ep>\d+)_mp_rank_(?P<mp>\d+)_optim_states\.pt")
_TRAINER = re.compile(r"checkpoint-(\d+)")
# The models of one ``save_state()``, each in a tag of its own (accelerate 1.15, ``accelerator.py``), of which
# ``latest`` names the one saved last.
_MODELS = re.compile(r"pytorch_model(?:_\d+)?")
_POINTERS = ("latest", "latest_universal")


@dataclass(frozen=True, slots=True)
class Run:
    """Name the folder of a run, the tag folder inside it, and how they were found."""

    root: Path
    tag: Path
    notes: tuple[Note, ...] = ()


@dataclass(slots=True)
class TagFiles:
    """Sort the files of a tag folder by kind and rank.

    Attributes:
        model: ``[mp][dp]`` to the model states; stages 0 to 2 have dp 0 only.
        optim: ``[mp][dp]`` to the ZeRO partitions.
        layers: ``[layer][tp]`` to a pipeline layer.
        experts: All expert files, by (layer, expert, mp).
        expert_optim: ``[mp][ep]`` to expert optimizer states (stage 0).
        universal: The ``zero`` folder of a universal checkpoint.
    """

    model: dict[int, dict[int, Path]] = field(default_factory=dict)
    optim: dict[int, dict[int, Path]] = field(default_factory=dict)
    layers: dict[int, dict[int, Path]] = field(default_factory=dict)
    experts: dict[tuple[int, int, int], Path] = field(default_factory=dict)
    expert_optim: dict[int, dict[int, Path]] = field(default_factory=dict)
    universal: Path | None = None

    def all(self) -> Iterator[Path]:
        """Yield every file but those of the universal folder."""
        for kind in (self.model, self.optim, self.layers, self.expert_optim):
            for ranks in kind.values():
                yield from ranks.values()
        yield from self.experts.values()


def sort_files(tag: Path) -> TagFiles:
    """Sort the files of a tag folder.

    Raises:
        FormatError: if two files claim the same rank (a save over an older one of another kind).
    """
    files = TagFiles()
    for path in sorted(tag.iterdir()):
        if path.name == "zero" and path.is_dir():
            files.universal = path
        elif m := _OPTIM.fullmatch(path.name):
            _claim(files.optim.setdefault(int(m["mp"]), {}), int(m["dp"]), path)
        elif m := _EXPERT_OPTIM.fullmatch(path.name):
            _claim(files.expert_optim.setdefault(int(m["mp"]), {}), int(m["ep"]), path)
        elif m := _EXPERT.fullmatch(path.name):
            files.experts[int(m["layer"] or 0), int(m["expert"]), int(m["mp"])] = path
        elif m := _LAYER.fullmatch(path.name):
            _claim(files.layers.setdefault(int(m["layer"]), {}), int(m["tp"] or 0), path)
        elif m := _MODEL.fullmatch(path.name):
            _claim(files.model.setdefault(int(m["mp"]), {}), int(m["dp"] or 0), path)
    return files


def _claim(ranks: dict[int, Path], rank: int, path: Path) -> None:
    if rank in ranks:
        raise FormatError(
            f"{path.name} and {ranks[rank].name} are both rank {rank}",
            where=path.parent,
            hint="two saves share this folder; move the older files away",
        )
    ranks[rank] = path


def is_tag(folder: Path) -> bool:
    """Whether a folder holds the files of one save."""
    return folder.is_dir() and any(
        _MODEL.fullmatch(p.name) or _OPTIM.fullmatch(p.name) for p in folder.iterdir()
    )


def tags(root: Path) -> list[Path]:
    """Return the tag folders of a run, by name."""
    return sorted(p for p in root.iterdir() if p.is_dir() and is_tag(p))


def looks_like_deepspeed(path: Path) -> bool:
    """Whether ``path`` is a run, a Trainer's output folder with such runs, a tag folder or a file of one."""
    if path.is_file():
        return path.name in _POINTERS or any(
            p.fullmatch(path.name) for p in (_MODEL, _OPTIM, _LAYER, _EXPERT, _EXPERT_OPTIM)
        )
    return path.is_dir() and (
        any((path / p).is_file() for p in _POINTERS)
        or is_tag(path)
        or bool(tags(path))
        or bool(_trainer_runs(path))
    )


def _trainer_runs(path: Path) -> list[tuple[int, Path]]:
    """Checkpoints of a Hugging Face Trainer that DeepSpeed wrote, by step."""
    return sorted(
        (int(m[1]), p)
        for p in path.iterdir()
        if p.is_dir() and (m := _TRAINER.fullmatch(p.name)) and ((p / "latest").is_file() or tags(p))
    )


def find_run(path: Path) -> Run:
    """Find the tag folder meant by ``path``: a run, a tag folder, a file inside, or a Trainer's folder.

    Args:
        path: What the user named.

    Raises:
        FormatError: if ``latest`` names a tag that is not there, or no weights are found.
        UsageError: if several tags are there and none is chosen, or a tag for each of several models.
    """
    if path.is_file():
        path = path.parent
    if is_tag(path):
        beside = path.parent
        root = beside if any((beside / p).is_file() for p in (*_POINTERS, "config.json")) else path
        return Run(root, path)
    if not any((path / p).is_file() for p in _POINTERS) and (runs := _trainer_runs(path)):
        step, newest = runs[-1]
        found = find_run(newest)
        text = f"checkpoint-{step} is the newest of {len(runs)} in {path}"
        return Run(found.root, found.tag, (Note("info", text), *found.notes))
    models = [t.name for t in tags(path) if _MODELS.fullmatch(t.name)] if path.is_dir() else []
    if len(models) > 1:
        raise UsageError(
            f"accelerate saved {len(models)} models here, each in a tag of its own: {', '.join(models)}",
            where=path,
            hint="give one of them: " + " or ".join(f"--tag {name}" for name in models),
        )
    for pointer in _POINTERS:
        if (path / pointer).is_file():
            named = read_head(path / pointer, 4096).decode(errors="replace").strip()
            return Run(path, _tag_folder(path, named, f"the file {pointer!r}"))
    there = tags(path)
    if len(there) == 1:
        return Run(path, there[0], (Note("info", f"no file 'latest'; the only tag is {there[0].name}"),))
    if there:
        raise UsageError(
            f"no file 'latest' says which of {len(there)} tags to read",
            where=path,
            hint="give --tag, one of " + ", ".join(t.name for t in there),
        )
    raise FormatError("no DeepSpeed checkpoint found", where=path)


def _tag_folder(root: Path, tag: str, source: str) -> Path:
    folder = root / tag
    there = ", ".join(t.name for t in tags(root)) or "none"
    # Lexically: a tag folder may well be a link to another disk, but its name must not lead out.
    if not tag or not is_inside(normpath(tag)):
        raise FormatError(
            f"{source} names {tag!r}, which is no folder inside the run",
            where=root,
            hint=f"give --tag; tags here: {there}",
        )
    if not folder.is_dir():
        raise FormatError(
            f"{source} names tag {tag!r}, but there is no such folder",
            where=root,
            hint=f"the save is not finished, or its folder was deleted; give --tag; tags here: {there}",
        )
    if not is_tag(folder):
        raise PlanError(
            f"tag {tag!r} holds no model or optimizer states",
            where=folder,
            hint=f"the save may not have finished; tags here: {there}",
        )
    return folder
