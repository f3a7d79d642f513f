"""Write measurements as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from measure import Usage

__all__ = ["Block", "by_pairs", "headline", "markdown", "splice"]

Runs = Mapping[str, Sequence[Usage]]


@dataclass(frozen=True, slots=True)
class Block:
    """One comparison.

    Attributes:
        title: Its heading.
        text: What was done.
        runs: Every repetition of every program; the n-th of one is the neighbour of the n-th of another.
        comparisons: Sentences about pairs.
    """

    title: str
    text: str
    runs: Runs
    comparisons: tuple[str, ...] = ()


def by_pairs(runs: Runs, first: str, second: str, *, difference: bool = False) -> str | None:
    """Compare neighbours: wall times' ratio, or their difference in seconds; None if one did not run."""
    if not (runs.get(first) and runs.get(second)):
        return None
    pairs = list(zip(runs[first], runs[second], strict=True))
    if difference:
        found = sorted(a.wall - b.wall for a, b in pairs)
        return (
            f"`{first}` less `{second}`: {median(found):+.2f} s, from {found[0]:+.2f} to {found[-1]:+.2f} s"
        )
    found = sorted(a.wall / b.wall for a, b in pairs)
    return (
        f"`{first}` takes {median(found):.1f} times as long as `{second}`, {found[0]:.1f} to {found[-1]:.1f}"
    )


def markdown(machine: Mapping[str, str], blocks: Sequence[Block], plot: str | None) -> str:
    """Return the whole of the results."""
    lines = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in machine.items()), ""]
    if plot:
        lines += [f"![Wall time and peak memory of each program]({plot})", ""]
    for block in blocks:
        lines += [f"### {block.title}", "", block.text, "", *_table(block.runs), ""]
        lines += [f"- {sentence}" for sentence in block.comparisons]
        lines += [""] if block.comparisons else []
    return "\n".join(lines)


def _table(runs: Runs) -> list[str]:
    lines = [
        "| program | wall, s | processor, s | peak RSS, MB | anonymous, MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, usages in runs.items():
        cells = (
            _range(usages, lambda u: u.wall, 2),
            _range(usages, lambda u: u.cpu, 2),
            _range(usages, lambda u: u.rss / 1e6, 0),
            _range(usages, lambda u: u.anon / 1e6, 0),
        )
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def _range(usages: Sequence[Usage], pick: Callable[[Usage], float], digits: int) -> str:
    """Write a median and, where there is one, the range: ``1.20 (1.10-1.45)``."""
    found = sorted(pick(u) for u in usages)
    middle, low, high = (f"{x:.{digits}f}" for x in (median(found), found[0], found[-1]))
    return middle if low == high else f"{middle} ({low}-{high})"


def headline(runs: Runs, labels: Sequence[str]) -> str:
    """Return the short table of the README: medians of wall time and the highest peak.

    Args:
        runs: The runs of one checkpoint.
        labels: The headings of the three columns.
    """
    lines = [f"| {' | '.join(labels)} |", "|---|---:|---:|"]
    for name, usages in runs.items():
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
