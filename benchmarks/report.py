"""Write what was measured into pages: few tables; details.py prints every number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from conversions import CASES, LARGE, Case, Tool
from machine import machine_of
from measure import Usage
from results import Results
from runner import BASELINE, ONE, ONE_DD, PLAN, READ, TWO, TWO_DD, Outcome
from targets import causes, judge, ratios, spread
from words import Words

__all__ = ["headline", "page", "splice"]

_NAMES_SHOWN = 90


def page(found: Sequence[Results], plots: Sequence[str], words: Words) -> str:
    """Return the results of a page.

    Args:
        found: Results, the largest size last.
        plots: Paths of images.
        words: Of the page's language.
    """
    small, large = found[0], found[-1]
    lines = [*_machine(found, words), ""]
    lines += [words.copy_heading.format(large.label()), "", *_against_copy(small, large, words), ""]
    lines += [*_quick(large, words), ""]
    lines += [words.tool_heading, "", *_against_tools(small, large, words), ""]
    lines += [words.scaling_heading.format(large.label()), "", *_scaling(large, words), ""]
    lines += [words.missed_heading, "", *_missed(found, words), ""]
    lines += [f"![{caption}]({path})\n" for caption, path in zip(words.plots, plots, strict=True)]
    return "\n".join(lines)


def _machine(found: Sequence[Results], words: Words) -> Iterator[str]:
    facts, here = found[-1].machine, machine_of(found[-1].machine)
    yield words.join.join(f"{words.facts.get(key, key)} {value}" for key, value in facts.items()) + words.stop
    if not all(o.held for r in found for o in r.cases.values()):
        yield words.not_held
    if others := sorted({o.machine for r in found for o in r.cases.values()} - {here, ""}):
        yield words.elsewhere.format(words.join.join(others))


def _titled(case: Case, words: Words) -> str:
    return words.titles.get(case.name, case.title)


def _base(case: Case) -> str:
    return BASELINE if case.against == "copy" else READ


def _runs(results: Results, case: Case, program: str, setting: str = "warm") -> Sequence[Usage]:
    outcome = results.cases.get(case.name)
    return outcome.runs.get(setting, {}).get(program, ()) if outcome else ()


def _head(columns: Sequence[str], left: int) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * left + "|---:" * (len(columns) - left) + "|"


def _against_copy(small: Results, large: Results, words: Words) -> Iterator[str]:
    """Yield a row for each conversion: the large size, and the small one's ratio."""
    yield from _head(words.copy_columns, 1)
    for case in CASES:
        if case.against == "nothing" or not _runs(large, case, TWO):
            continue
        outcome, base = large.cases[case.name], _base(case)
        title = _titled(case, words) + ("" if outcome.held else " †") + _away(large, case, found=large)
        cells = [
            f"{outcome.bytes_out / 1e9:.2f}" if outcome.bytes_out else words.read,
            _wall(_runs(large, case, TWO), 2),
            _wall(_runs(large, case, base), 2),
            _ratio(outcome, TWO, base, 2),
            _wall(_runs(large, case, PLAN), 2),
            _peak(_runs(large, case, TWO)),
            _ratio(small.cases.get(case.name), TWO, base, 2) + _away(small, case, found=large),
        ]
        yield f"| {title} | {' | '.join(cells)} |"


def _away(results: Results, case: Case, *, found: Results) -> str:
    """Return a mark for what was measured on another machine than the one described."""
    outcome = results.cases.get(case.name)
    return " ‡" if outcome and outcome.machine not in ("", machine_of(found.machine)) else ""


def _quick(results: Results, words: Words) -> Iterator[str]:
    """Yield what takes no conversion at all."""
    found = [
        f"`{_titled(case, words)}`: {_wall(usages, 2)} s"
        for case in CASES
        if case.against == "nothing" and (usages := _runs(results, case, "ckptconv"))
    ]
    if found:
        yield words.join.join(found) + words.stop


def _against_tools(small: Results, large: Results, words: Words) -> Iterator[str]:
    """Yield a row for each tool of each conversion."""
    yield from _head(words.tool_columns, 2)
    for case in CASES:
        for tool in case.tools:
            cells = [cell for results in (small, large) for cell in _tool(results, case, tool, words)]
            if any(cells):
                yield f"| {_titled(case, words)} | {_named(tool)} | {' | '.join(cells)} |"


def _tool(results: Results, case: Case, tool: Tool, words: Words) -> tuple[str, str, str]:
    outcome = results.cases.get(case.name)
    if outcome and tool.name in outcome.problems:
        return words.absent.format(outcome.problems[tool.name][:_NAMES_SHOWN].replace("|", "\\|")), "", ""
    theirs, ours = (_runs(results, case, name) for name in (tool.name, TWO))
    if outcome is None or not theirs or not ours:
        return "", "", ""
    times = _ratio(outcome, tool.name, TWO, 1, ranged=False) + _away(results, case, found=results)
    return (
        f"{_wall(theirs, 1)} : {_wall(ours, 1)}",
        times,
        f"{_peak(theirs)} : {_peak(ours)}",
    )


def _named(tool: Tool) -> str:
    return f"`{tool.name}`" if "_" in tool.name or "." in tool.name else tool.name


def _scaling(results: Results, words: Words) -> Iterator[str]:
    """Yield what two workers gain over one, and what two plain copies do."""
    yield from _head(words.scaling_columns, 1)
    for case in CASES:
        outcome = results.cases.get(case.name)
        if outcome is None or not case.scaling or not ratios(outcome, "warm", ONE_DD, TWO_DD):
            continue
        cells = [
            spread(ratios(outcome, setting, first, second))
            for setting in ("warm", "tmpfs")
            for first, second in ((ONE, TWO), (ONE_DD, TWO_DD))
        ]
        yield f"| {_titled(case, words)} | {' | '.join(cells)} |"


def _missed(found: Sequence[Results], words: Words) -> Iterator[str]:
    """Yield how many aims were reached, and those that were not by their causes."""
    known = causes(words.language)
    counts: dict[str, list[bool]] = {}
    rows: dict[tuple[str, str], list[str]] = {}
    for results in reversed(found):
        for target in judge(results):
            aim = words.aims[target.aim].format(results.label(), words.limits[results.size > LARGE])
            counts.setdefault(aim, []).append(target.met)
            if not target.met:
                key = target.key if target.key in known else f"{results.label()} {target.aim}"
                rows.setdefault((aim, key), []).append(f"`{target.case}` {target.found}")
    yield (
        words.join.join(f"{aim}{words.colon}{sum(met)} / {len(met)}" for aim, met in counts.items())
        + words.stop
    )
    if rows:
        yield ""
        yield from _head(words.missed_columns, len(words.missed_columns))
    for (aim, key), what in rows.items():
        yield f"| {aim} | {words.join.join(what)} | {known.get(key, '')} |"


def _ratio(outcome: Outcome | None, first: str, second: str, digits: int, *, ranged: bool = True) -> str:
    found = ratios(outcome, "warm", first, second) if outcome else []
    return spread(found, digits) if ranged or not found else f"{median(found):.{digits}f}"


def _wall(usages: Sequence[Usage], digits: int) -> str:
    return f"{median(u.wall for u in usages):.{digits}f}" if usages else ""


def _peak(usages: Sequence[Usage]) -> str:
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
            lines.append(f"| `{name}` | {_wall(usages, 1)} s | {_peak(usages)} MB |")
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
