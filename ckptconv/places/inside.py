"""Tell a name that stays in its folder from one that leads elsewhere.

The words decide, not what lies there: in the hub's cache every file is a link out of its folder.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["is_inside", "is_plain_name"]


def is_plain_name(name: str) -> bool:
    """Whether a file's name, told by another file, is that of a file right beside it."""
    return Path(name).name == name and name not in ("", ".", "..") and "\0" not in name


def is_inside(path: str) -> bool:
    """Whether a relative path, told by another file, leads to a place below the folder it is told in."""
    parts = path.replace("\\", "/").split("/")
    return not (os.path.isabs(path) or "\0" in path or parts[0][1:2] == ":" or {"", ".", ".."} & set(parts))
