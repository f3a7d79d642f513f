"""Tell places on disk from places behind a URL; both are paths to whoever reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote

__all__ = ["forget", "is_remote", "open_binary", "place"]

# A path object has lost one slash of its URL. One letter alone would be a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(?!/)")
_LOCAL = re.compile(r"(?:file|local)://?(?=/)")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a place lies behind a URL: ``s3://bucket/key``, ``hf://org/model`` or any fsspec knows."""
    return "://" in os.fspath(path)


def place(path: str | os.PathLike[str]) -> Path:
    """Return the path a text or a path object stands for.

    A URL that `pathlib.Path` took a slash from (``s3:/bucket``) is known again, unless a folder is called so.

    Raises:
        UsageError: if it is a URL and the packages for it are not installed.
    """
    text = os.fspath(path)
    if found := _LOCAL.match(text):
        return Path(unquote(text[found.end() :]))
    found = _URL.match(text)
    if found is None or (found[2] == "/" and os.path.lexists(text)):
        return path if isinstance(path, Path) else Path(text)
    from ckptconv.storage.remotepath import RemotePath

    return path if isinstance(path, RemotePath) else RemotePath(text)


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for short reads at random positions: unbuffered on disk, in blocks from behind a URL."""
    if is_remote(path):
        return cast(BinaryIO, place(path).open("rb"))
    return cast(BinaryIO, open(path, "rb", buffering=0))


def forget() -> None:
    """Forget the listings of remote folders, so that what is there now is seen."""
    import sys

    if (module := sys.modules.get("ckptconv.storage.remote")) is not None:
        module.forget()
