"""Tell a name that stays in its folder from one that leads elsewhere.

The words decide, not what lies there: in the hub's cache every file is a link out of its folder.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_plain_name"]


def is_plain_name(name: str) -> bool:
    """Whether a file's name, told by another file, is that of a file right beside it."""
    return Path(name).name == name and name not in ("", ".", "..") and "\0" not in name
