"""Draw with matplotlib such that the same numbers make the same SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["available", "save"]


def available() -> bool:
    """Return whether matplotlib is there."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    # Text stays text, and the same numbers make the same file.
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "ckptconv", "font.family": "sans-serif", "font.size": 9}
    )
    return True


def save(figure: Any, path: Path) -> None:
    """Write a figure to an SVG, and close it."""
    from matplotlib import pyplot

    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
