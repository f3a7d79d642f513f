"""Draw the comparison as a small SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from measure import Usage

__all__ = ["draw"]

_OURS, _THEIRS = "#1f6feb", "#8c959f"


def draw(path: Path, results: Mapping[str, Mapping[str, Sequence[Usage]]]) -> bool:
    """Draw bars of wall time and peak memory, one row of panels per checkpoint.

    Args:
        path: The SVG to write.
        results: Runs by program, by checkpoint.

    Returns:
        Whether matplotlib was there to draw it.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    # Text stays text, and the same numbers make the same file.
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "ckptconv", "font.family": "sans-serif", "font.size": 9}
    )
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(results), 2, figsize=(9, 0.7 + 1.9 * len(results)), squeeze=False, sharey="row"
    )
    for (title, runs), (left, right) in zip(results.items(), rows, strict=True):
        names = list(runs)
        walls = [[u.wall for u in runs[n]] for n in names]
        peaks = [[u.rss / 1e6 for u in runs[n]] for n in names]
        _bars(left, names, walls, f"{title}: seconds", "{:.2g} s")
        _bars(right, names, peaks, "peak memory, MB", "{:.0f} MB")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    return True


def _bars(axes: object, names: list[str], values: list[list[float]], title: str, label: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    middles = [median(v) for v in values]
    spread = [
        [m - min(v) for m, v in zip(middles, values, strict=True)],
        [max(v) - m for m, v in zip(middles, values, strict=True)],
    ]
    colors = [_OURS if n.startswith("ckptconv") else _THEIRS for n in names]
    axes.barh(names, middles, xerr=spread, color=colors, height=0.62, error_kw={"lw": 0.8, "capsize": 2})
    for row, (middle, v) in enumerate(zip(middles, values, strict=True)):
        axes.annotate(
            label.format(middle), (max(v), row), xytext=(5, 0), textcoords="offset points", va="center"
        )
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
    axes.set_xlim(0, 1.25 * max(max(v) for v in values))
    axes.invert_yaxis() if not axes.yaxis_inverted() else None
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
