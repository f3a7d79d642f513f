#!/usr/bin/env python
"""Print every number that was measured, as Markdown: programs, settings, ranges, and what was compared.

python benchmarks/details.py                    from benchmarks/data
python benchmarks/details.py FILE.json...       of these results
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from conversions import CASES, Case
from machine import machine_of
from measure import Usage
from results import STORED, Results, load
from runner import BASELINE, COPY, ONE, ONE_DD, PLAN, READ, TWO, TWO_DD, Outcome
from targets import ratios, spread

__all__ = ["details"]

_SETTINGS = {
    "warm": "",
    "cold": ", page cache empty",
    "tmpfs": ", written to memory",
    "budget": "",
}
_OURS = (TWO, ONE, PLAN, COPY, BASELINE, READ, ONE_DD, TWO_DD)


def details(found: Sequence[Results]) -> str:
    """Return all numbers of all cases.

    Args:
        found: Results, the largest size last.
    """
    lines: list[str] = []
    for results in found:
        loads = [o.load for o in results.cases.values()]
        lines += [f"{results.label()}, measured {results.machine['date']}", ""]
        lines += [f"- {key}: {value}" for key, value in results.machine.items()]
        lines += [f"- load average before a case: {min(loads):.1f}-{max(loads):.1f}"]
        lines += [*(f"- {text}" for text in _elsewhere(results)), ""]
    for case in CASES:
        lines += _detail(case, found)
    return "\n".join(lines)


def _elsewhere(results: Results) -> Iterator[str]:
    """Say which cases were measured on another machine than the one described."""
    here = machine_of(results.machine)
    for name, outcome in results.cases.items():
        if outcome.machine not in ("", here):
            yield f"{name}: on {outcome.machine}"
        if not outcome.held:
            yield f"{name}: no memory was held for it, see pages.py: what went through memory may have waited"


def _detail(case: Case, found: Sequence[Results]) -> Iterator[str]:
    outcomes = [(r, r.cases[case.name]) for r in found if case.name in r.cases]
    if not outcomes:
        return
    yield f"## {case.title}"
    yield ""
    if case.note:
        yield case.note
        yield ""
    yield f"    ckptconv {_shown(case.command)}"
    yield ""
    yield "| size | program | wall, s | processor, s | peak RSS, MB | anonymous, MB |"
    yield "|---|---|---:|---:|---:|---:|"
    for results, outcome in outcomes:
        for setting, suffix in _SETTINGS.items():
            for name, usages in _ordered(outcome.runs.get(setting, {})):
                yield f"| {results.label()} | {name}{suffix} | " + " | ".join(_cells(usages)) + " |"
        for name, reason in outcome.problems.items():
            yield f"| {results.label()} | {name} | not measured: {_escaped(reason)} | | | |"
    yield ""
    for results, outcome in outcomes:
        sentences = [*_sentences(case, outcome), *outcome.checks]
        yield from (f"- {results.label()}: {s}" for s in sentences)
    yield ""


def _sentences(case: Case, outcome: Outcome) -> Iterator[str]:
    if outcome.bytes_in and case.against != "nothing":
        out = f", {outcome.bytes_out / 1e9:.2f} GB out" if outcome.bytes_out else ""
        yield f"{outcome.bytes_in / 1e9:.2f} GB of files in (holes not counted){out}"
    for setting, suffix in _SETTINGS.items():
        base = BASELINE if case.against == "copy" else READ
        for first, second in (
            (TWO, base),
            *((tool.name, TWO) for tool in case.tools),
            (ONE, TWO),
            (ONE_DD, TWO_DD),
        ):
            if times := ratios(outcome, setting, first, second):
                yield f"{first} takes {spread(times)} times as long as {second}{suffix}"


def _ordered(programs: Mapping[str, Sequence[Usage]]) -> list[tuple[str, Sequence[Usage]]]:
    rank = {name: i for i, name in enumerate(_OURS)}
    return sorted(programs.items(), key=lambda item: rank.get(item[0], len(rank)))


def _shown(command: str) -> str:
    for brace, name in (("{out}", "OUT"), ("{", ""), ("}", "")):
        command = command.replace(brace, name)
    return command


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:200]


def _cells(usages: Sequence[Usage]) -> tuple[str, ...]:
    return (
        _range(usages, lambda u: u.wall, 2),
        _range(usages, lambda u: u.cpu, 2),
        _range(usages, lambda u: u.rss / 1e6, 0),
        _range(usages, lambda u: u.anon / 1e6, 0),
    )


def _range(usages: Sequence[Usage], pick: Callable[[Usage], float], digits: int) -> str:
    return spread(sorted(pick(u) for u in usages), digits)


def main() -> None:
    """Print."""
    data = Path(__file__).resolve().parent / "data"
    files = [Path(a) for a in sys.argv[1:]] or [data / f"{name}.json" for name in STORED.values()]
    print(details([r for f in files if (r := load(f))]))


if __name__ == "__main__":
    main()
