"""Read sizes in bytes as people write them, and write them so."""

from __future__ import annotations

import re

from ckptconv.errors import UsageError

__all__ = ["parse_size", "size_text"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str) -> int:
    """Read a size such as ``5GB`` (decimal, as the hub counts) or ``512MiB`` as bytes.

    Raises:
        UsageError: if it is not one.
    """
    m = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    size = int(float(m[1]) * _UNITS[m[2] or ""]) if m else 0
    if size <= 0:
        raise UsageError(f"not a size: {text!r}", hint="write 5GB, 200MB, 512MiB or a number of bytes")
    return size


def size_text(count: float) -> str:
    """Write a number of bytes as the hub does: decimal units."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
