"""Compare what was measured with what was aimed at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from conversions import CASES, LARGE, Case
from results import Results
from runner import BASELINE, ONE, ONE_DD, PLAN, TWO, TWO_DD, Outcome

from ckptconv.engine.options import DEFAULT_MEMORY

__all__ = ["CAUSES", "Target", "causes", "judge", "limit_of", "ratios", "spread"]

CAUSES = Path(__file__).resolve().parent / "causes.json"
_MEMORY = 150e6 + DEFAULT_MEMORY
_SCALING = 1.5
_SMALL = 1.15  # times the baseline, of every conversion of small files


@dataclass(frozen=True, slots=True)
class Target:
    """An aim and how far it was reached.

    Attributes:
        aim: ``speed``, ``disk`` or ``memory`` (two workers over one), or ``peak``.
        case: The name of the conversion.
        found: What was measured.
        met: Whether that is enough.
        key: The name of its cause in causes.json.
    """

    aim: str
    case: str
    found: str
    met: bool
    key: str


def causes(language: str) -> dict[str, str]:
    """Return what is known of why targets were missed."""
    found = json.loads(CAUSES.read_text(encoding="utf-8")) if CAUSES.is_file() else {}
    return {key: texts[language] for key, texts in found.items()}


def ratios(outcome: Outcome, setting: str, first: str, second: str) -> list[float]:
    """Return the wall times' ratios of neighbours, sorted."""
    runs = outcome.runs.get(setting, {})
    return sorted(a.wall / b.wall for a, b in zip(runs.get(first, ()), runs.get(second, ()), strict=False))


def limit_of(case: Case, size: float) -> float:
    """Return how many times as long as the baseline a conversion may take."""
    return (case.limit or 0) if size > LARGE else max(_SMALL, case.limit or 0)


def judge(results: Results) -> list[Target]:
    """Judge every target that was measured at one size."""
    return [*_speeds(results), *_scalings(results), *_memories(results)]


def _speeds(results: Results) -> Iterator[Target]:
    for case in CASES:
        outcome = results.cases.get(case.name)
        if outcome is None or case.limit is None:
            continue
        limit = limit_of(case, results.size)
        if found := ratios(outcome, "warm", TWO, BASELINE):
            shown = f"{median(found):.2f}" + (f" > {limit:g}" if limit not in (1, _SMALL) else "")
            if plans := outcome.runs["warm"].get(PLAN):
                times = (median(u.wall for u in r) for r in (plans, outcome.runs["warm"][TWO]))
                shown += " ({:.2f} of {:.2f} s)".format(*times)
            yield Target("speed", case.name, shown, median(found) <= limit, _key(results, case.name, "speed"))


def _scalings(results: Results) -> Iterator[Target]:
    """Judge two workers where the processor is the limit; a small file's start is not their work."""
    for case in CASES if results.size > LARGE else ():
        outcome = results.cases.get(case.name)
        if outcome is None or not case.scaling:
            continue
        for aim, setting in (("disk", "warm"), ("memory", "tmpfs")):
            found, copies = (ratios(outcome, setting, *pair) for pair in ((ONE, TWO), (ONE_DD, TWO_DD)))
            if found and copies:
                met = round(median(found), 2) >= round(min(_SCALING, median(copies)), 2)
                yield Target(aim, case.name, f"{median(found):.2f}", met, _key(results, case.name, aim))


def _memories(results: Results) -> Iterator[Target]:
    highest = max(
        (
            (u.rss, case.name)
            for case in CASES
            if case.name in results.cases
            for setting in ("warm", "cold", "tmpfs")
            for program in (TWO, ONE, "ckptconv")
            for u in results.cases[case.name].runs.get(setting, {}).get(program, ())
        ),
        default=None,
    )
    if highest:
        rss, name = highest
        yield Target("peak", name, f"{rss / 1e6:.0f} MB", rss <= _MEMORY, _key(results, name, "peak"))


def _key(results: Results, case: str, aim: str) -> str:
    return f"{results.label()} {case} {aim}"


def spread(found: list[float], digits: int = 2) -> str:
    """Write a median and, where there is one, the range: ``1.20 (1.10-1.45)``."""
    if not found:
        return ""
    middle, low, high = (f"{x:.{digits}f}" for x in (median(found), found[0], found[-1]))
    return middle if low == high else f"{middle} ({low}-{high})"
