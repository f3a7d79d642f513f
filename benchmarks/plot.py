"""Draw the comparisons as small SVGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from conversions import CASES, Case
from results import Results
from runner import BASELINE, TWO
from svg import save
from targets import limit_of, ratios

__all__ = ["draw_ratios", "draw_tools"]

_OURS, _THEIRS, _LINE = "#1f6feb", "#8c959f", "#cf222e"


def draw_ratios(path: Path, found: Sequence[Results]) -> None:
    """Draw wall time over that of ``cp`` and ``sync``, a panel a size, with the targets as lines."""
    from matplotlib import pyplot

    cases = [c for c in CASES if c.limit is not None and any(c.name in r.cases for r in found)]
    figure, panels = pyplot.subplots(
        1, len(found), figsize=(1 + 4 * len(found), 0.9 + 0.3 * len(cases)), squeeze=False, sharey=True
    )
    for axes, results in zip(panels[0], found, strict=True):
        for row, case in enumerate(cases):
            values = (
                ratios(results.cases[case.name], "warm", TWO, BASELINE) if case.name in results.cases else []
            )
            if values:
                _bar(axes, row, values, "{:.2f}", _OURS)
            axes.plot([limit_of(case, results.size)] * 2, [row - 0.4, row + 0.4], color=_LINE, lw=1.2)
        axes.set_yticks(range(len(cases)), [c.name for c in cases])
        title = f"{results.label()}: time / cp + sync, 2 workers; red: target"
        _finish(axes, title)
    save(figure, path)


def draw_tools(path: Path, results: Results) -> bool:
    """Draw wall time and peak memory of ours and of the other tools; False if none ran."""
    from matplotlib import pyplot

    pairs = [(c, t.name) for c in CASES for t in c.tools if _runs(results, c, t.name)]
    if not pairs:
        return False
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 0.9 + 0.45 * len(pairs)), sharey=True)
    for row, (case, tool) in enumerate(pairs):
        for shift, name, color in ((-0.2, TWO, _OURS), (0.2, tool, _THEIRS)):
            usages = _runs(results, case, name)
            _bar(left, row + shift, sorted(u.wall for u in usages), "{:.2g} s", color, 0.36)
            _bar(right, row + shift, sorted(u.rss / 1e6 for u in usages), "{:,.0f} MB", color, 0.36)
    left.set_yticks(range(len(pairs)), [f"{c.name}\nor {tool}" for c, tool in pairs], fontsize=7)
    for axes, what in ((left, "seconds"), (right, "peak RSS, MB")):
        _finish(axes, f"{results.label()}: {what}; blue: ckptconv")
    save(figure, path)
    return True


def _runs(results: Results, case: Case, name: str) -> Sequence[Any]:
    outcome = results.cases.get(case.name)
    return outcome.runs.get("warm", {}).get(name, ()) if outcome else ()


def _bar(
    axes: Any, row: float, values: Sequence[float], label: str, color: str, height: float = 0.62
) -> None:
    middle = median(values)
    spread = [[middle - values[0]], [values[-1] - middle]]
    axes.barh(row, middle, xerr=spread, color=color, height=height, error_kw={"lw": 0.8, "capsize": 2})
    axes.annotate(
        label.format(middle),
        (values[-1], row),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _finish(axes: Any, title: str) -> None:
    axes.margins(x=0.2, y=0.01)
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
    axes.invert_yaxis() if not axes.yaxis_inverted() else None
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
