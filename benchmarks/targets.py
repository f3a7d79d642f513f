"""Compare what was measured with what was aimed at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cases import CASES, Case
from results import Results
from runner import BASELINE, ONE, TWO, Outcome

__all__ = ["Target", "judge", "ratios", "table", "titled"]

CAUSES = Path(__file__).resolve().parent / "causes.json"
_MEMORY = 150e6 + 64 * 2**20  # ckptconv's default for --max-memory
_SCALING = 1.6


@dataclass(frozen=True, slots=True)
class Target:
    """An aim and how far it was reached.

    Attributes:
        key: The name of its cause in causes.json.
        aim: What was aimed at.
        what: The conversion.
        found: What was measured.
        met: Whether that is enough.
    """

    key: str
    aim: str
    what: str
    found: str
    met: bool


def ratios(outcome: Outcome, setting: str, first: str, second: str) -> list[float]:
    """Return the wall times' ratios of neighbours, sorted."""
    runs = outcome.runs.get(setting, {})
    return sorted(a.wall / b.wall for a, b in zip(runs.get(first, ()), runs.get(second, ()), strict=False))


def titled(case: Case, outcome: Outcome) -> str:
    """Return the conversion's title, marked if no memory was held while it was measured."""
    return case.title if outcome.held else f"{case.title} †"


def judge(results: Results) -> list[Target]:
    """Judge every target that was measured at one size."""
    return [*_speeds(results), *_scalings(results), *_memories(results)]


def table(targets: Sequence[Target]) -> list[str]:
    """Return the lines of the table; causes come from causes.json."""
    causes = json.loads(CAUSES.read_text(encoding="utf-8")) if CAUSES.is_file() else {}
    lines = ["| target | conversion | measured | met |", "|---|---|---|---|"]
    for t in targets:
        because = f": {causes[t.key]}" if not t.met and t.key in causes else ""
        lines.append(f"| {t.aim} | {t.what} | {t.found} | {'yes' if t.met else 'no'}{because} |")
    return lines


def _speeds(results: Results) -> Iterator[Target]:
    for case in CASES:
        outcome = results.cases.get(case.name)
        if case.limit is None or outcome is None:
            continue
        found = ratios(outcome, "warm", TWO, BASELINE)
        if found:
            aim = f"2 workers at most {case.limit:g} times `cp` + `sync`"
            met = median(found) <= case.limit
            yield Target(f"{case.name} speed", aim, titled(case, outcome), _spread(found), met)


def _scalings(results: Results) -> Iterator[Target]:
    for case in CASES:
        outcome = results.cases.get(case.name)
        if outcome is None or not case.tmpfs:
            continue
        found = ratios(outcome, "tmpfs", ONE, TWO)
        if found:
            aim = f"2 workers at least {_SCALING:g} times as fast as 1, written to memory"
            yield Target(
                f"{case.name} scaling", aim, titled(case, outcome), _spread(found), median(found) >= _SCALING
            )


def _memories(results: Results) -> Iterator[Target]:
    highest = max(
        (
            (u.rss, case.title)
            for case in CASES
            if case.name in results.cases
            for setting in ("warm", "cold", "tmpfs")
            for program in (TWO, ONE, "ckptconv")
            for u in results.cases[case.name].runs.get(setting, {}).get(program, ())
        ),
        default=None,
    )
    if highest:
        aim = f"peak RSS at most 150 MB + --max-memory ({_MEMORY / 1e6:.0f} MB)"
        found = f"{highest[0] / 1e6:.0f} MB"
        yield Target("memory", aim, f"all; the highest: {highest[1]}", found, highest[0] <= _MEMORY)


def _spread(found: Sequence[float]) -> str:
    return f"{median(found):.2f} ({found[0]:.2f}-{found[-1]:.2f})"
