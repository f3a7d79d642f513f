"""Write speeds and times that are left for people."""

from __future__ import annotations

from typing import Final

from ckptconv.numbers.sizes import size_text

__all__ = ["how_far", "left_text", "speed_text", "took"]

_NO_TIME: Final = 0.1  # seconds that say nothing about speed
_SOON: Final = 60  # seconds up to which they are told apart


def speed_text(count: float, seconds: float) -> str:
    """Return bytes a second; nothing for what took no time."""
    return "" if seconds < _NO_TIME else f"{size_text(count / seconds)}/s"


def took(seconds: float) -> str:
    """Return a time in parentheses; nothing for what took none."""
    return "" if seconds < _NO_TIME else f" ({seconds:.1f} s)"


def left_text(seconds: float) -> str:
    """Return how long something will still take."""
    if seconds < _SOON:
        return f"{seconds:.0f} s left"
    minutes = seconds / 60
    return f"{minutes:.0f} min left" if minutes < 90 else f"{minutes / 60:.1f} h left"


def how_far(what: str, done: int, total: int, *, fresh: int, seconds: float) -> str:
    """Say how far something is, in a line.

    Args:
        what: Its label.
        done: Bytes that are done.
        total: Bytes in all.
        fresh: Those that were done in this time.
        seconds: The time.
    """
    percent = 100 * done // total if total else 100
    left = left_text((total - done) * seconds / max(fresh, 1))
    parts = (
        f"{what}: {percent}%",
        f"{size_text(done)} of {size_text(total)}",
        speed_text(fresh, seconds),
        left,
    )
    return ", ".join(filter(None, parts))
