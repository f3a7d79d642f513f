"""Keep account of the files being written: what is left of each, and what is known of its parts."""

from __future__ import annotations

import threading
from dataclasses import field
from pathlib import Path

import xxhash

from ckptconv.engine.events import FileDone, Listener, Progress
from ckptconv.engine.journal import Journal
from ckptconv.engine.output import remove_empty
from ckptconv.engine.sums import Crc
from ckptconv.engine.task import Result, block_count
from ckptconv.plans.plan import Plan
from ckptconv.records import dataclass

__all__ = ["Ledger"]


@dataclass(slots=True)
class _Account:
    """What is known of one file."""

    left: int
    digests: list[bytes]
    crcs: dict[int, list[Crc]] = field(default_factory=dict)


class Ledger:
    """Gather the results of tasks, whoever carries them out; safe to use from many threads.

    Args:
        plan: The plan.
        folder: The output folder.
        journal: Where files that are whole are entered.
        tell: Told of progress.
    """

    def __init__(self, plan: Plan, folder: Path, journal: Journal, tell: Listener) -> None:
        self._plan, self._folder, self._journal, self._tell = plan, folder, journal, tell
        self._lock = threading.Lock()
        self._accounts: dict[int, _Account] = {}
        self.overflows = 0

    def open(self, file: int) -> None:
        """Begin the account of a file."""
        blocks = block_count(self._plan.files[file].layout.size)
        self._accounts[file] = _Account(blocks, [b""] * blocks)

    def took(self, result: Result) -> bool:
        """Enter what a task found; return whether it was the last of its file, whose data is now complete."""
        task, account = result.task, self._accounts[result.task.file]
        lo, hi = task.span(self._plan.files[task.file].layout.size)
        self._tell(Progress(hi - lo))
        with self._lock:
            self.overflows += result.overflows
            account.digests[task.first : task.first + len(result.digests)] = result.digests
            for tensor, crc in result.crcs.items():
                account.crcs.setdefault(tensor, []).append(crc)
            account.left -= task.blocks
            return account.left == 0

    def crcs(self, file: int) -> dict[int, list[Crc]]:
        """Return the sums of a file's tensors, to seal it with."""
        return self._accounts[file].crcs

    def whole(self, file: int) -> None:
        """Enter a file in the journal: complete, sealed if it had to be, and on disk."""
        out = self._plan.files[file]
        digest = xxhash.xxh3_128(b"".join(self._accounts[file].digests)).hexdigest()
        with self._lock:
            del self._accounts[file]
            self._journal.add(out.name, digest)
        self._tell(FileDone(out.name, out.layout.size, digest))

    def give_up(self) -> None:
        """Remove unfinished files; finished ones stay, unnamed, for ``--resume``."""
        for file in self._plan.files:
            if file.name not in self._journal.done:
                path = self._folder / (file.name + ".part")
                path.unlink(missing_ok=True)
                remove_empty(path.parent, self._folder)
