"""Kill conversions with SIGKILL at random moments, look at what is left, resume, and count.

A folder looks whole if somebody would take it for a model: transformers (config.json and weights), Megatron
(its tracker file), torch.distributed.checkpoint (.metadata), MindSpore (any file), or ckptconv's own readers.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ckptconv as api
from ckptconv.engine.journal import JOURNAL
from ckptconv.errors import CkptconvError
from ckptconv.verify.certificate import NAME as CERTIFICATE
from faults.kinds import Kind, Source
from running import ROOT, command, contents, succeeds

__all__ = ["COLUMNS", "Count", "Killer", "final", "table", "takers", "untimed"]

_DIES = Path(__file__).parent / "dies.py"
_WEIGHTS = (".safetensors", ".bin", ".index.json")
_TRACKER = "latest_checkpointed_iteration.txt"
Files = Mapping[str, bytes]


@dataclass(slots=True)
class Count:
    """Count what became of the runs of one kind.

    Attributes:
        runs: How many were started to be killed.
        inside: Killed between their first file and their end.
        naming: Of these, killed while files got their final names, or later.
        ended: Over before the signal came.
        whole: Of those inside, left a folder that looks whole; every byte of it was right.
        resumed: Of those inside, resumed to the bytes of an undisturbed run.
        lost: What went wrong, each with the seed that shows it.
    """

    runs: int = 0
    inside: int = 0
    naming: int = 0
    ended: int = 0
    whole: int = 0
    resumed: int = 0
    lost: list[str] = field(default_factory=list)


COLUMNS = ("runs", "inside", "naming", "ended", "whole", "resumed", "lost")


def table(counts: Mapping[str, Count]) -> str:
    """Return the counts as a table, with their sums."""
    rows = [[name, *(_cell(count, c) for c in COLUMNS)] for name, count in counts.items()]
    sums = [str(sum(int(row[i + 1]) for row in rows)) for i in range(len(COLUMNS))]
    lines = [["kind", *COLUMNS], *rows, ["all", *sums]]
    width = max(len(line[0]) for line in lines)
    return "\n".join(f"{line[0]:<{width}}" + "".join(f"{cell:>9}" for cell in line[1:]) for line in lines)


def _cell(count: Count, column: str) -> str:
    value = getattr(count, column)
    return str(len(value) if isinstance(value, list) else value)


def final(out: Path) -> Files:
    """Return what lies in the folder under a final name."""
    return {n: b for n, b in untimed(contents(out)).items() if not n.endswith(".part") and n != JOURNAL}


def untimed(files: Files) -> Files:
    """Leave out of a certificate how long the verification took."""
    if (data := files.get(CERTIFICATE)) is None:
        return files
    said = json.loads(data)
    said["result"].pop("seconds")
    said["result"]["proof"].pop("seconds")
    return {**files, CERTIFICATE: json.dumps(said, sort_keys=True).encode()}


def takers(out: Path, files: Files) -> list[str]:
    """Say who would take a folder for a model."""
    found = []
    if "config.json" in files and any(n.endswith(_WEIGHTS) for n in files):
        found.append("transformers")
    if _TRACKER in files:
        found.append("Megatron")
    if any(n.rpartition("/")[2] == ".metadata" for n in files):
        found.append("torch.distributed.checkpoint")
    for folder in (out, *(p for p in out.iterdir() if p.is_dir())):
        try:
            api.open(folder)
        except CkptconvError:
            continue
        found.append("ckptconv")
        break
    return found


class Killer:
    """Convert one kind again and again, and kill it.

    Args:
        kind: What to convert.
        source: The sources.
        scratch: A folder for the outputs.
        seed: Where the random moments start.
        flags: More flags, which make a run slow enough to be hit.
    """

    def __init__(self, kind: Kind, source: Source, scratch: Path, seed: int, flags: tuple[str, ...]) -> None:
        self._kind, self._source = kind, source
        self._seed, self._random = seed, random.Random(f"{seed} {kind.name}")
        self._out = scratch / "out"
        self._flags = flags
        self.count = Count()
        self._old: Files = {}
        self._fresh()
        if kind.old is not None:
            self._old = final(self._out)
        ran = subprocess.run(
            [sys.executable, str(_DIES), "0", str(self._out), *self._words(), "--quiet"],
            capture_output=True, cwd=ROOT, env=_environment(), timeout=600, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr.decode()
        self.expected = untimed(contents(self._out))
        steps, first, seconds = ran.stderr.split()[-3:]
        self._steps, self._first, self._span = int(steps), int(first), float(seconds)

    def _words(self) -> list[str]:
        return [*self._source.words(self._kind, self._out), *self._flags]

    def _fresh(self) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        if self._kind.old is not None:
            self._source.fill(self._kind, self._out)

    def _start(self, *flags: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(*self._words(), *flags), cwd=ROOT, env=_environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, times: int) -> Count:
        """Kill so many runs: half at a moment of the clock, half just before a file is made or named."""
        for i in range(times):
            self._fresh()
            self.count.runs += 1
            by_clock = i % 2 == 0
            code = self._by_clock() if by_clock else self._at_step(naming=i % 4 == 1)
            if code == 0:
                self.count.ended += 1
                continue
            assert code == -9, f"exit code {code}"
            if not self._out.exists() or not any(self._out.iterdir()):
                continue  # before it had begun to write
            try:
                self._look()
            except AssertionError as error:
                self.count.lost.append(f"{self._kind.name}, seed {self._seed}, run {i}: {error}"[:2000])
        return self.count

    def _by_clock(self) -> int:
        process = self._start("--quiet")
        while not (self._out / JOURNAL).exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(self._random.uniform(0, self._span))
        process.kill()
        process.communicate(timeout=60)
        return process.returncode

    def _at_step(self, *, naming: bool) -> int:
        step = self._random.randint(self._first if naming else 1, self._steps)
        words = [sys.executable, str(_DIES), str(step), str(self._out), *self._words(), "--quiet"]
        return subprocess.run(
            words, capture_output=True, cwd=ROOT, env=_environment(), check=False
        ).returncode

    def _look(self) -> None:
        """Judge what a killed run left, resume it, and judge the result."""
        left = untimed(contents(self._out))
        if left == self._old or left == self.expected:
            self.count.ended += 1
            return
        self.count.inside += 1
        files = final(self._out)
        journal = left.get(JOURNAL, b"")
        if b'"naming"' in journal or JOURNAL not in left:
            self.count.naming += 1
        elif self._old:
            assert files == self._old, "the old model is touched before the new one is whole"
        wrong = [n for n, b in files.items() if b != self.expected.get(n) and b != self._old.get(n)]
        assert not wrong, f"under a final name, but not whole: {wrong}"
        if found := takers(self._out, files):
            without = {n: b for n, b in self.expected.items() if n != CERTIFICATE}
            whole = any(files == known for known in (self.expected, without, self._old))
            assert whole, f"looks whole to {', '.join(found)}: {sorted(files)}, {journal[-200:]!r}"
            self.count.whole += 1
        words = [w for w in self._words() if w != "--overwrite"]
        succeeds(*words, "--resume", "--quiet")
        now = untimed(contents(self._out))
        differs = sorted(n for n in {*now, *self.expected} if now.get(n) != self.expected.get(n))
        assert not differs, f"resumed to other bytes: {differs}"
        self.count.resumed += 1


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}
