"""Prepare a run's output folder, give files their final names, and explain what the system says."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptconv.engine.journal import JOURNAL, Entries, Journal, parse, read_entries
from ckptconv.engine.options import Options
from ckptconv.engine.whole import is_whole
from ckptconv.errors import CkptconvError, InterruptedRunError, OutputError
from ckptconv.places.places import advice, is_remote, local_advice
from ckptconv.places.regular import read_bytes
from ckptconv.plans.loaded import leftovers
from ckptconv.plans.plan import OutFile, Plan

__all__ = [
    "CERTIFICATE",
    "check_space",
    "commit",
    "explain",
    "explained",
    "in_order",
    "is_there",
    "kept",
    "prepare",
    "remove_parts",
    "stale",
]

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FIRST = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space or raise the limit"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit (ulimit -n)"),
}


def explain(error: BaseException, folder: Path) -> BaseException:
    """Turn an operating system's error into one that says what to do."""
    if not isinstance(error, OSError):
        return error
    elsewhere = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(folder)
    if elsewhere and error.errno in _DENIED:  # a source
        way = local_advice(error) or "copy the source to where you may read it"
        hint = f"{way}, then run again{_resuming(folder)}"
    elif error.errno in _DENIED:
        hint = f"choose a folder you may write to, or see to the right to, and run again{_resuming(folder)}"
    else:
        hint = f"{_FIRST.get(error.errno or 0, 'see to the cause')}, then run again{_resuming(folder)}"
    return OutputError(
        f"{error.strerror or error}", where=error.filename or folder, hint=advice(error) or hint
    )


def _resuming(folder: Path) -> str:
    """Return the flag to add next time; without a journal a folder that holds other files takes none."""
    there = not is_remote(folder) and folder.is_dir() and not _has_begun(folder)
    return "" if there and any(folder.iterdir()) else " with --resume"


def _has_begun(folder: Path) -> bool:
    """Whether the journal of a run is there, and says of which plan it is."""
    try:
        return parse(read_bytes(folder / JOURNAL).decode(errors="replace")) is not None
    except (CkptconvError, OSError):
        return False


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C and the system's errors into ones that say what to do."""
    try:
        yield
    except KeyboardInterrupt as e:
        raise InterruptedRunError(
            "interrupted; what is whole is kept",
            where=folder,
            hint=f"run the same command again{_resuming(folder)}",
        ) from e
    except OSError as e:
        raise explain(e, folder) from e


@contextmanager
def kept(journal: Journal, *, after: bool) -> Iterator[None]:
    """Keep the journal of a run that fails with something whole, and ``after`` one that succeeds if asked."""
    try:
        yield
    except BaseException:
        if not journal.done:
            journal.remove()
        raise
    if after:
        journal.named_all()
    else:
        journal.remove()


def is_there(folder: Path, file: OutFile, journal: Journal) -> bool:
    """Whether a file the journal calls whole is, under its temporary or already its final name.

    Its content is read and compared with the digest entered for it: a size proves nothing.
    """
    names = [file.name + ".part", file.name][: 1 + journal.naming]
    found = [folder / n for n in names if (folder / n).is_file()]
    return any(is_whole(p, file.layout, journal.done[file.name]) for p in found)


def prepare(plan: Plan, folder: Path, options: Options, digest: str) -> None:
    """Create the folder, or check that it may be written into."""
    if folder.exists() and not folder.is_dir():
        raise OutputError("the output is a file, not a folder", where=folder, hint="name a folder")
    real = os.path.realpath(folder)
    if real in {
        os.path.realpath(plan.source),
        *(os.path.dirname(os.path.realpath(i.path)) for i in plan.inputs),
    }:
        raise OutputError(
            "the output folder is the one the checkpoint is read from",
            where=folder,
            hint="choose another folder",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(
            f"cannot create the folder: {e.strerror}", where=folder, hint="choose a folder you may write to"
        ) from e
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            "the folder cannot be written to", where=folder, hint="choose a folder you may write to"
        )
    earlier = read_entries(folder)
    if options.overwrite:
        return
    if earlier is not None and not options.resume and (earlier.naming or any(_parts(folder))):
        raise OutputError(
            "the folder holds an interrupted run",
            where=folder,
            hint="give --resume to go on with it, or --overwrite to start again",
        )
    if others := _others(plan, folder, earlier, digest):
        raise OutputError(
            f"the output folder is not empty ({', '.join(others[:5])})",
            where=folder,
            hint="choose another folder, or give --overwrite to replace the model in it",
        )


def _others(plan: Plan, folder: Path, earlier: Entries | None, digest: str) -> list[str]:
    """Return what lies in the folder and is not what a run that may be resumed left there."""
    ours = {JOURNAL}
    if earlier is not None:
        ours.update(p.relative_to(folder).parts[0] for p in _parts(folder))
        if earlier.plan == digest and earlier.overwrite:
            return []
        if earlier.plan == digest and earlier.naming:
            names = [*(f.name for f in plan.files), *(a.name for a in plan.assets)]
            ours.update(Path(n).parts[0] for n in (*names, CERTIFICATE))
    return sorted(p.name for p in folder.iterdir() if p.name not in ours and not _is_bare(p))


def _is_bare(path: Path) -> bool:
    """Whether a path is a folder without a file in it, as a run leaves one that was stopped early."""
    return path.is_dir() and not path.is_symlink() and not any(names for _, _, names in os.walk(path))


CERTIFICATE = "ckptconv-verify.json"  # of a run that was verified, and stopped before it was over

_PARTS = ("*.part", "*/*.part", "*/*/*.part")


def _parts(folder: Path) -> Iterator[Path]:
    return (p for pattern in _PARTS for p in folder.glob(pattern))


def remove_parts(folder: Path) -> None:
    """Remove what an interrupted run of another plan left."""
    for path in list(_parts(folder)):
        path.unlink()
        remove_empty(path.parent, folder)


def remove_empty(path: Path, folder: Path) -> None:
    """Remove a folder inside the output, and those above it, as far as they are empty."""
    while path != folder:
        try:
            path.rmdir()
        except OSError:
            return
        path = path.parent


def check_space(plan: Plan, folder: Path, resumed: int) -> None:
    """Refuse to start where the output does not fit."""
    need = plan.bytes_out - resumed + sum(len(a.content) for a in plan.assets)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OutputError(
            f"{need} bytes are to be written, but only {free} are free",
            where=folder,
            hint="free space, choose another folder, or write fewer bytes with --dtype bfloat16",
        )


# In the order the old model is taken apart: it stops looking whole first.
_STALE = (
    "config.json",
    "latest_checkpointed_iteration.txt",
    CERTIFICATE,
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
    "tf_model.h5.index.json",
    "tf_model.h5",
    "tf_model-*-of-*.h5",
)


def commit(plan: Plan, folder: Path, journal: Journal) -> list[str]:
    """Give every file its name: weights and assets, then the index, what the folder is known by last.

    Returns:
        The files of an old model that were removed, and that the plan has none in place of.
    """
    for asset in plan.assets:
        path = folder / (asset.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o666), "wb") as f:
            f.write(asset.content)
            f.flush()
            os.fsync(f.fileno())
    names = in_order(plan)
    gone: list[str] = []
    journal.name_all()
    if journal.overwrite:
        for name in stale(plan, folder):
            # One that an earlier run has named already is of the new model.
            if name not in names or (folder / (name + ".part")).exists():
                (folder / name).unlink()
                remove_empty((folder / name).parent, folder)
            gone += [name] if name not in names else []
    for name in names:
        if (part := folder / (name + ".part")).exists():
            os.replace(part, folder / name)
    for inner in {p for n in names for p in (folder / n).parents if p.is_relative_to(folder)}:
        _sync(inner)
    return gone


def in_order(plan: Plan) -> list[str]:
    """List the files of a plan as they get their names: last the index, and what the folder is known by."""
    return sorted([f.name for f in plan.files] + [a.name for a in plan.assets], key=_last)


def stale(plan: Plan, folder: Path) -> list[str]:
    """List an old model's files, in the order to remove them before those of the plan get their names."""
    names = in_order(plan)
    # Ranks of another layout in the folder of an iteration that is written anew.
    ranks = {f"{Path(n).parts[0]}/mp_rank_*/*.pt" for n in names if len(Path(n).parts) > 2}
    parents = sorted({n.rpartition("/")[0] for n in names if n.endswith(".distcp")})
    known, chunks = ([f"{p}/{n}".lstrip("/") for p in parents] for n in (".metadata", "*.distcp"))
    patterns = [*known, *_STALE, *sorted(ranks), *chunks]
    there = [p.relative_to(folder).as_posix() for pattern in patterns for p in folder.glob(pattern)]
    config = next((a.content for a in plan.assets if a.name == "config.json"), None)
    return list(dict.fromkeys([*there, *leftovers(folder, names, config)]))


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# What makes a folder a checkpoint to those who load it: named last, in this order.
_ENTRIES = ("config.json", ".metadata", "latest_checkpointed_iteration.txt")


def _last(name: str) -> int:
    base = name.rpartition("/")[2]
    return 2 + _ENTRIES.index(base) if base in _ENTRIES else int(name.endswith(".index.json"))
