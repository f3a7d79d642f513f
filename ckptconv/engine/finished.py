"""Tell whether a folder already holds, whole and under its final names, what a plan would write.

Nothing beside the files says which run wrote them, and a model of another step has the same names and sizes:
so what would be written is computed again, and its digests are compared with the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ckptconv.engine.abreast import Group
from ckptconv.engine.events import Listener, Started
from ckptconv.engine.journal import JOURNAL, Journal
from ckptconv.engine.ledger import Ledger
from ckptconv.engine.local import run_locally
from ckptconv.engine.options import Options, Report
from ckptconv.engine.output import CERTIFICATE, stale
from ckptconv.engine.sink import Sink
from ckptconv.engine.whole import is_whole
from ckptconv.errors import OutputError
from ckptconv.places.files import SourceFiles
from ckptconv.places.regular import read_bytes
from ckptconv.plans.plan import OutFile, Plan

__all__ = ["finished"]


class _Nowhere:
    """Take bytes, and keep none."""

    def write(self, data: memoryview | bytes, at: int) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class _Unwritten:
    """Open files of which only the digests are wanted."""

    def open(self, file: OutFile) -> Sink:
        return _Nowhere()

    def blocks(self, file: OutFile) -> int:
        return 1

    def fitting(self, groups: Sequence[Group]) -> Sequence[Group]:
        return groups


class _Entries:
    """Stand for a journal: the digests of the files that would be written."""

    def __init__(self) -> None:
        self.done: dict[str, str] = {}

    def add(self, name: str, digest: str) -> None:
        self.done[name] = digest


def finished(plan: Plan, folder: Path, options: Options, tell: Listener) -> Report | None:
    """Return the report of the run that wrote a folder, if it is the plan's; None if no run has.

    Raises:
        OutputError: if it holds the output of a run of other options, or of another source.
    """
    names = [*(f.name for f in plan.files), *(a.name for a in plan.assets)]
    if (folder / JOURNAL).exists() or not any((folder / f.name).exists() for f in plan.files):
        return None
    extra = [n for n in stale(plan, folder) if n not in names and n != CERTIFICATE]
    if extra:
        raise _other(folder, f"{extra[0]} is not of it")
    for file in plan.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.layout.size:
            raise _other(folder, f"{file.name} is not there or has another size")
    for asset in plan.assets:
        path = folder / asset.name
        if not path.is_file() or read_bytes(path, most=len(asset.content)) != asset.content:
            raise _other(folder, f"{asset.name} is another")
    tell(Started(plan.bytes_out, 0))
    entries = _Entries()
    ledger = Ledger(plan, folder, cast(Journal, entries), tell)
    with SourceFiles(plan.inputs, options.max_memory // 2) as sources:
        run_locally(plan, range(len(plan.files)), folder, options, sources, ledger, _Unwritten())
        sources.check()
    for file in plan.files:
        if not is_whole(folder / file.name, file.layout, entries.done[file.name]):
            raise _other(folder, f"{file.name} holds other values")
    files = {f.name: entries.done[f.name] for f in plan.files}  # in the plan's order, not as threads ended
    return Report(str(folder), files, plan.bytes_out, plan.bytes_out, ledger.overflows)


def _other(folder: Path, why: str) -> OutputError:
    return OutputError(
        f"the folder holds a finished run with other flags, or of another source: {why}",
        where=folder,
        hint="give the flags of that run, another folder, or --overwrite to replace the model",
    )
