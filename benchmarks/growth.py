"""Draw how a plan's time and memory grow as a small SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from svg import available, save

__all__ = ["draw_growth"]

_GREY = "#8c959f"
_TITLES = ("seconds of processor time", "peak memory, MB")


def draw_growth(path: Path, series: Mapping[str, Sequence[tuple[float, float, float]]]) -> bool:
    """Draw how time and memory grow, in logarithmic scales, with a line of slope 1 beside them.

    Args:
        path: The SVG to write.
        series: By name, points of (size, seconds, MB).

    Returns:
        Whether matplotlib was there to draw it.
    """
    if not available():
        return False
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for panel, title, column in zip(panels, _TITLES, (1, 2), strict=True):
        for marker, (name, points) in zip("os^Dv<>pX", series.items(), strict=False):
            panel.plot(
                [p[0] for p in points], [p[column] for p in points], marker=marker, ms=4, lw=1, label=name
            )
        every = [p for points in series.values() for p in points]
        low, high = min(p[0] for p in every), max(p[0] for p in every)
        top = max(p[column] for p in every)
        panel.plot([low, high], [top * low / high, top], color=_GREY, lw=0.8, ls="--", label="linear")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(f"plan: {title}", loc="left", fontsize=9, fontweight="bold")
        panel.set_xlabel("tensors + places in files + pairs of boxes")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=7)
    save(figure, path)
    return True
