"""Run the cases: make what they start from, let all programs take turns, keep what each took."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import copies
from conversions import LARGE, Case, Tool
from measure import Failed, Usage, drop_caches, measure, warm
from pages import held
from sources import SOURCES

__all__ = ["BASELINE", "COPY", "ONE", "ONE_DD", "PLAN", "READ", "TWO", "TWO_DD", "Outcome", "Runner"]

ROOT = Path(__file__).resolve().parent.parent
TWO, ONE, COPY, BASELINE, READ = "ckptconv, 2 workers", "ckptconv, 1 worker", "cp", "cp + sync", "cat"
ONE_DD, TWO_DD = "1 dd", "2 dd, half each"
PLAN = "ckptconv --dry-run"
_BUDGETS = ("16MiB", "256MiB")
_TMPFS = Path("/dev/shm")
_TOOL_REPEATS = 2
_LARGE_TOOL_REPEATS = 1
_COLD_REPEATS = 2
_LARGE_REPEATS = 2  # of one worker, and in memory, where noise is small
_QUICK_REPEATS = 10
_MEMORY_SHARE = 0.85
_THIN = 1e9  # bytes; what is smaller may lie there


@dataclass(slots=True)
class Outcome:
    """What a case took.

    Attributes:
        bytes_in: Size of what is read; holes do not count.
        bytes_out: Size of what our command wrote.
        runs: Every repetition by program, by setting: warm, cold, tmpfs, budget.
        problems: Why a program has no numbers, by its name.
        checks: What was compared, and what came of it.
        load: Load average when it began.
        held: Whether memory was held for the programs, see pages.py.
        machine: Processor and system.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    runs: dict[str, dict[str, list[Usage]]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    load: float = 0.0
    held: bool = False
    machine: str = ""

    def add(self, setting: str, program: str, usage: Usage) -> None:
        """Keep one run."""
        self.runs.setdefault(setting, {}).setdefault(program, []).append(usage)
        say(f"    {setting:6} {program:32} {usage.wall:7.2f} s {usage.rss / 1e6:8.0f} MB")


class Runner:
    """Run cases of one size.

    Attributes:
        work: The folder everything is written to.
        repeat: Repetitions with a warm page cache.
    """

    def __init__(
        self,
        work: Path,
        *,
        size: float,
        repeat: int,
        pythons: Mapping[str, str],
        log: IO[bytes],
        machine: str,
        without: Sequence[str] = (),
    ) -> None:
        self._machine, self._without, self._thin = machine, without, set[str]()
        self.work, self._size, self.repeat, self._log = work, size, repeat, log
        self._pythons = dict(pythons)
        self._out, self._theirs, self._copy = work / "out", work / "theirs", work / "copy"
        self._can_be_cold = os.access("/proc/sys/vm/drop_caches", os.W_OK)

    def run(self, case: Case) -> Outcome:
        """Run one case; whatever fails is written down, and the rest goes on."""
        outcome = Outcome(load=os.getloadavg()[0], held=True, machine=self._machine)
        try:
            for name in case.needs:
                if name not in self._thin or name in self._inputs(case):
                    self.make(name, outcome)
            self._thin_out(case)
            outcome.bytes_in = sum(_stored(self._source(n)) for n in self._inputs(case))
            if case.against == "nothing":
                self._quick(case, outcome)
            else:
                self._settings(case, outcome)
        except (Failed, OSError) as e:
            outcome.problems["ckptconv"] = str(e)
            say(f"    failed: {e}")
        finally:
            self.clear()
        return outcome

    def make(self, name: str, outcome: Outcome) -> None:
        """Make a source and all it needs, where they are not there."""
        source, folder = SOURCES[name], self._source(name)
        if folder.is_dir() and name not in self._thin:
            return
        for other in source.needs:
            self.make(other, outcome)
        self._thin.discard(name)
        remove(folder)
        say(f"  making {name}")
        ways = [w for w in (source.steps, source.stand_in) if w]
        for i, steps in enumerate(ways if self._size <= LARGE else ways[-1:], 1):
            partial = folder.with_name(name + ".part")
            remove(partial)
            try:
                for step in steps:
                    measure(self._command(step, out=partial), cwd=ROOT, log=self._log)
            except Failed as e:
                if i == len(ways):
                    raise Failed(f"cannot make {name}: {e}") from e
                outcome.checks.append(f"{name} made by its stand-in, {ways[-1][0].split()[1]}: {e}")
                say(f"    {outcome.checks[-1]}")
                continue
            partial.rename(folder)
            return

    def drop_sources(self, needed: Sequence[str], later: Sequence[str]) -> None:
        """Remove all sources but those that are needed now or, as long as they are small, later."""
        kept = {*needed, *(later if self._size <= LARGE else ())}
        keep = kept | {other for n in kept for other in SOURCES[n].needs}
        for name in SOURCES.keys() - keep:
            remove(self._source(name))

    def clear(self) -> None:
        """Remove what the programs wrote."""
        for path in (self._out, self._theirs, self._theirs.with_suffix(".pt"), self._copy, self._tmpfs):
            remove(path)

    def _thin_out(self, case: Case) -> None:
        """Let go of the weights of what only helped to make the large files that are read; names stay."""
        if self._size <= LARGE:
            return
        for name in SOURCES.keys() - set(self._inputs(case)):
            if self._source(name).is_dir() and _stored(self._source(name)) > _THIN:
                self._thin.add(name)
                for file in self._source(name).glob("*.safetensors"):
                    _hollow(file)

    @property
    def _tmpfs(self) -> Path:
        return _TMPFS / f"ckptconv-bench-{os.getpid()}"

    def _source(self, name: str) -> Path:
        return self.work / "sources" / name

    def _inputs(self, case: Case) -> Sequence[str]:
        return case.needs if case.against == "read" else case.needs[:1]

    def _command(self, text: str, *, out: Path) -> list[str]:
        half, layers = self._size / 2, max(1, round(20 * self._size))
        paths = {name: self._source(name) for name in SOURCES}
        sizes = {"size": self._size, "half": half, "layers": layers}
        found = text.format_map({**paths, **sizes, "out": out, "theirs": self._theirs})
        first, *rest = shlex.split(found)
        if first == "ckptconv":
            return [sys.executable, "-m", "ckptconv", *rest]
        if first.endswith("python"):
            python = self._pythons[first]
            if not python:
                raise Failed(f"no {first.removesuffix('-python')} installed")
            return [python, *rest]
        return [first, *rest]

    def _settings(self, case: Case, outcome: Outcome) -> None:
        small = self._size <= LARGE
        if case.against == "copy":
            self._plan(case, outcome)
        for i in range(self.repeat):
            self._round(case, outcome, i)
            if small and i < _TOOL_REPEATS:
                self._tools(case, outcome, i)
            if i == 0 and case.same and small:
                what = f"{TWO[:8]} and the model it was made from"
                self._compare("python", f"{{out}} {case.same}", what, outcome)
        if case.scaling and "memory" not in self._without:
            self._in_memory(case, outcome)
        for i in range(0 if small else _LARGE_TOOL_REPEATS):
            remove(self._out)  # with what the tool writes the disk may not hold it
            self._tools(case, outcome, i)
        if (case.cold or small) and self._can_be_cold and "cold" not in self._without:
            for _ in range(_COLD_REPEATS if case.cold else 1):
                self._pair(case, outcome, "cold", TWO, self._ours(case, 2))
        if case.budgets and "budgets" not in self._without:
            for budget in _BUDGETS:
                command = [*self._ours(case, 2), "--max-memory", budget]
                self._once(case, outcome, "budget", f"--max-memory {budget}", [command])

    def _plan(self, case: Case, outcome: Outcome) -> None:
        """Start and plan, and write nothing: what a small conversion mostly is."""
        self._prepare("warm", [self._source(n) for n in self._inputs(case)])
        command = [*self._ours(case, 2), "--dry-run"]
        for _ in range(self.repeat):
            outcome.add("warm", PLAN, measure(command, cwd=ROOT, log=self._log))

    def _round(self, case: Case, outcome: Outcome, i: int) -> None:
        """Run each program once: the copy between our two, which take turns in coming first."""
        both = [(TWO, self._ours(case, 2))]
        scaling = case.scaling and "copies" not in self._without
        if self._size <= LARGE or scaling:
            both.append((ONE, self._ours(case, 1)))
        both = both[:: -1 if i % 2 else 1]
        self._pair(case, outcome, "warm", *both[0])
        if len(both) == 2:
            self._once(case, outcome, "warm", both[1][0], [both[1][1]])
        if scaling:
            self._copies(outcome, "warm", i)

    def _copies(self, outcome: Outcome, setting: str, i: int) -> None:
        """Copy what we wrote by one program and by two at once, for what two can gain here at all."""
        on_disk = setting == "warm"
        target = self._copy if on_disk else self._tmpfs
        for name, parts in ((ONE_DD, 1), (TWO_DD, 2))[:: -1 if i % 2 else 1]:
            self._prepare(setting, [self._out])
            with held(outcome.bytes_out):
                command = copies.command(self._out, target, parts, sync=on_disk)
                usage = measure(command, cwd=ROOT, log=self._log)
            outcome.add(setting, name, usage)
            remove(target)

    def _tools(self, case: Case, outcome: Outcome, i: int) -> None:
        if "tools" in self._without:
            return
        for tool in case.tools:
            if (tool.large or self._size <= LARGE) and tool.name not in outcome.problems:
                self._tool(case, outcome, tool, check=i == 0 and self._size <= LARGE)

    def _pair(self, case: Case, outcome: Outcome, setting: str, name: str, command: list[str]) -> None:
        """Run ours and then the baseline on what it wrote."""
        self._once(case, outcome, setting, name, [command])
        if case.against == "read":
            files = [str(f) for n in self._inputs(case) for f in _files(self._source(n))]
            command = ["sh", "-c", 'cat "$@" > /dev/null', "cat", *files]
            self._once(case, outcome, setting, READ, [command])
            return
        outcome.bytes_out = outcome.bytes_out or _stored(self._out)
        copy = ["cp", "-r", "--reflink=never", str(self._out), str(self._copy)]
        sync = ["sync", *(str(self._copy / f.relative_to(self._out)) for f in _files(self._out))]
        self._prepare(setting, [self._out])
        cached = 2 if setting == "cold" else 1
        with held(cached * outcome.bytes_out):
            first = measure(copy, cwd=ROOT, log=self._log)
            synced = first.then(measure(sync, cwd=ROOT, log=self._log))
        outcome.add(setting, COPY, first)
        outcome.add(setting, BASELINE, synced)
        remove(self._copy)

    def _once(
        self, case: Case, outcome: Outcome, setting: str, name: str, steps: Sequence[list[str]]
    ) -> None:
        remove(self._out)
        self._prepare(setting, [self._source(n) for n in self._inputs(case)])
        with held(self._memory(outcome, setting)):
            usage = _all(measure(step, cwd=ROOT, log=self._log) for step in steps)
        outcome.add(setting, name, usage)

    @staticmethod
    def _memory(outcome: Outcome, setting: str) -> int:
        """Return the bytes a run of ours brings into the page cache, which it writes past."""
        return {"cold": outcome.bytes_in, "tmpfs": outcome.bytes_out}.get(setting, 0)

    def _tool(self, case: Case, outcome: Outcome, tool: Tool, *, check: bool) -> None:
        outputs = (self._theirs, self._theirs.with_suffix(".pt"))
        try:
            steps = [self._command(step, out=self._out) for step in tool.steps]
            if not tool.hold and self._can_be_cold:
                drop_caches()  # what they hold is not free
            self._prepare("warm", [self._source(n) for n in self._inputs(case)])
            with held(outcome.bytes_in + outcome.bytes_out if tool.hold else 0):
                usage = _all(measure(step, cwd=ROOT, log=self._log) for step in steps)
            outcome.add("warm", tool.name, usage)
            if check and tool.same:
                self._compare(tool.checker, tool.same, f"{tool.name} and ckptconv", outcome)
        except Failed as e:
            outcome.problems[tool.name] = str(e)
            say(f"    failed: {e}")
        finally:
            for path in outputs:
                remove(path)

    def _in_memory(self, case: Case, outcome: Outcome) -> None:
        """Write to memory, so that the disk is no limit; leave it out where the memory does not suffice."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if outcome.bytes_in + outcome.bytes_out > _MEMORY_SHARE * memory or not _TMPFS.is_dir():
            outcome.problems["tmpfs"] = "source and output do not fit into memory together"
            return
        if shutil.disk_usage(_TMPFS).free < outcome.bytes_out:
            outcome.problems["tmpfs"] = f"{_TMPFS} is too small"
            return
        for i in range(self.repeat if self._size <= LARGE else _LARGE_REPEATS):
            for name, workers in ((TWO, 2), (ONE, 1))[:: -1 if i % 2 else 1]:
                self._prepare("tmpfs", [self._source(n) for n in self._inputs(case)])
                command = self._ours(case, workers, out=self._tmpfs)
                with held(self._memory(outcome, "tmpfs")):
                    usage = measure(command, cwd=ROOT, log=self._log)
                outcome.add("tmpfs", name, usage)
                remove(self._tmpfs)
            self._copies(outcome, "tmpfs", i)

    def _quick(self, case: Case, outcome: Outcome) -> None:
        command = self._command(f"ckptconv {case.command}", out=self._out)
        for _ in range(_QUICK_REPEATS):
            outcome.add("warm", "ckptconv", measure(command, cwd=ROOT, log=self._log))

    def _ours(self, case: Case, workers: int, *, out: Path | None = None) -> list[str]:
        return self._command(f"ckptconv {case.command} --workers {workers}", out=out or self._out)

    def _prepare(self, setting: str, inputs: Sequence[Path]) -> None:
        """Let nothing of earlier runs wait for the disk, and bring the page cache to the same state."""
        os.sync()
        if setting == "cold":
            drop_caches()
            return
        for folder in inputs:
            for file in _files(folder):
                warm(file)

    def _compare(self, checker: str, arguments: str, what: str, outcome: Outcome) -> None:
        command = self._command(f"{checker} benchmarks/same_tensors.py {arguments}", out=self._out)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["nothing said"]
        outcome.checks.append(f"{what}: {'' if done.returncode == 0 else 'NOT THE SAME: '}{said[-1]}")
        say(f"    {outcome.checks[-1]}")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def say(text: str) -> None:
    """Tell what is being done."""
    print(text, file=sys.stderr, flush=True)


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _stored(folder: Path) -> int:
    """Return the bytes files take on the disk, without holes, or their size if that is less."""
    return sum(min(s.st_size, s.st_blocks * 512) for s in (f.stat() for f in _files(folder)))


def _hollow(file: Path) -> None:
    """Make a hole of a safetensors file's data; the header stays."""
    size = file.stat().st_size
    with open(file, "r+b") as opened:
        opened.truncate(8 + int.from_bytes(opened.read(8), "little"))
        opened.truncate(size)


def _all(usages: Iterator[Usage]) -> Usage:
    total = next(usages)
    for usage in usages:
        total = replace(total).then(usage)
    return total
