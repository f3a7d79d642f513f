"""Write measurements as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import MappingProxyType

from cases import CASES, Case
from machine import machine_of
from measure import Usage
from results import Results
from runner import BASELINE, COPY, ONE, READ, TWO, Outcome
from targets import judge, ratios, table, titled

__all__ = ["headline", "markdown", "overview", "splice"]

_SETTINGS = {
    "warm": "",
    "cold": ", page cache empty",
    "tmpfs": ", written to memory",
    "budget": "",
}
_COLUMNS = (
    "conversion", "out, GB", "2 workers, s", "1 worker, s", "`cp` + `sync`, s", "times `cp` + `sync`",
    "other tool, s", "times ours", "peak RSS, MB", "other's, MB",
)  # fmt: skip
_NOT_HELD = (
    "† Measured before memory was held for the programs: what went through the page cache or into memory, "
    "`cp` above all, may have waited for the host as well."
)
_OURS = (TWO, ONE, COPY, BASELINE, READ)


def markdown(found: Sequence[Results], plots: Sequence[tuple[str, str]]) -> str:
    """Return the whole of the results.

    Args:
        found: Results, the largest size last.
        plots: Captions and paths of images.
    """
    machine = found[-1].machine
    lines = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in machine.items())]
    for results in found:
        loads = [o.load for o in results.cases.values()]
        times = _repeats(results)
        lines.append(
            f"| {results.label()} | {times}; load average before a case {min(loads):.1f}-{max(loads):.1f} |"
        )
    lines += [f"| also | {text} |" for text in _elsewhere(found)]
    lines += ["", *(f"![{caption}]({path})\n" for caption, path in plots)]
    lines += ["### Targets", "", f"At {found[-1].label()}.", "", *table(judge(found[-1])), ""]
    if not all(o.held for r in found for o in r.cases.values()):
        lines += [_NOT_HELD, ""]
    for results in reversed(found):
        lines += [f"### Overview, {results.label()}", "", *overview(results), ""]
    lines += ["### All numbers", ""]
    for case in CASES:
        lines += _detail(case, found)
    return "\n".join(lines)


def _elsewhere(found: Sequence[Results]) -> Iterator[str]:
    """Say which cases were measured on another machine than the one described."""
    here = machine_of(found[-1].machine)
    for results in found:
        others: dict[str, list[str]] = {}
        for case in CASES:
            if (outcome := results.cases.get(case.name)) and outcome.machine not in ("", here):
                others.setdefault(outcome.machine, []).append(case.title)
        yield from (f"{results.label()} on {m}: {', '.join(titles)}" for m, titles in others.items())


def _repeats(results: Results) -> str:
    counts = {len(r) for o in results.cases.values() for n, r in o.runs.get("warm", {}).items() if n == TWO}
    return f"measured {results.machine['date']}, {' or '.join(map(str, sorted(counts)))} repetitions"


def overview(
    results: Results, columns: Sequence[str] = _COLUMNS, titles: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """Yield the lines of the table of all conversions.

    Args:
        results: What was measured at one size.
        columns: Its head.
        titles: What to call cases, where that is not their own title.
    """
    yield f"| {' | '.join(columns)} |"
    yield "|---" + "|---:" * (len(columns) - 1) + "|"
    for case in CASES:
        outcome = results.cases.get(case.name)
        if outcome is None or case.against == "nothing":
            continue
        runs = outcome.runs.get("warm", {})
        base = BASELINE if case.against == "copy" else READ
        tool = case.tools[0].name if case.tools and case.tools[0].name in runs else None
        cells = [
            f"{outcome.bytes_out / 1e9:.2f}" if outcome.bytes_out else "",
            *(_median(runs.get(name), lambda u: u.wall, 2) for name in (TWO, ONE, base)),
            _ratio(ratios(outcome, "warm", TWO, base), 2),
            _median(runs.get(tool), lambda u: u.wall, 1) if tool else "",
            _ratio(ratios(outcome, "warm", tool, TWO), 1) if tool else "",
            _peak(runs.get(TWO)),
            _peak(runs.get(tool)) if tool else "",
        ]
        title = titled(case, outcome).replace(case.title, titles.get(case.name, case.title))
        yield f"| {title} | " + " | ".join(cells) + " |"


def _detail(case: Case, found: Sequence[Results]) -> Iterator[str]:
    outcomes = [(r, r.cases[case.name]) for r in found if case.name in r.cases]
    if not outcomes:
        return
    yield f"#### {case.title}"
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
        for first, second in ((TWO, base), *((tool.name, TWO) for tool in case.tools), (ONE, TWO)):
            if times := ratios(outcome, setting, first, second):
                yield f"{first} takes {_ratio(times, 2)} times as long as {second}{suffix}"


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
    return _ratio(sorted(pick(u) for u in usages), digits)


def _ratio(found: Sequence[float], digits: int) -> str:
    """Write a median and, where there is one, the range: ``1.20 (1.10-1.45)``."""
    if not found:
        return ""
    middle, low, high = (f"{x:.{digits}f}" for x in (median(found), found[0], found[-1]))
    return middle if low == high else f"{middle} ({low}-{high})"


def _median(usages: Sequence[Usage] | None, pick: Callable[[Usage], float], digits: int) -> str:
    return f"{median(pick(u) for u in usages):.{digits}f}" if usages else ""


def _peak(usages: Sequence[Usage] | None) -> str:
    return f"{max(u.rss for u in usages) / 1e6:,.0f}" if usages else ""


def headline(results: Results, labels: Sequence[str]) -> str:
    """Return the README's short table of ZeRO-3: medians of wall time and the highest peak.

    Args:
        results: What was measured.
        labels: The headings of the three columns.
    """
    full, rounded = (results.cases[n].runs.get("warm", {}) for n in ("zero3", "zero3-bf16"))
    rows = {
        "ckptconv": full.get(TWO),
        "ckptconv --dtype bfloat16": rounded.get(TWO),
        "cp + sync": full.get(BASELINE),
        "zero_to_fp32.py": full.get("zero_to_fp32.py"),
    }
    return _short(rows, labels)


def _short(rows: Mapping[str, Sequence[Usage] | None], labels: Sequence[str]) -> str:
    lines = [f"| {' | '.join(labels)} |", "|---|---:|---:|"]
    for name, usages in rows.items():
        if usages:
            wall, peak = median(u.wall for u in usages), max(u.rss for u in usages) / 1e6
            lines.append(f"| `{name}` | {wall:.1f} s | {peak:,.0f} MB |")
    return "\n".join(lines) + "\n"


def splice(path: Path, marker: str, text: str) -> None:
    """Replace what stands between ``<!-- MARKER -->`` and ``<!-- /MARKER -->``.

    Raises:
        ValueError: if the markers are not there.
    """
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, also, after = rest.partition(end)
    if not found or not also:
        raise ValueError(f"{path} lacks the lines {begin} and {end}")
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
