"""Tell places on disk from places behind a URL; both are paths to whoever reads them."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from ckptconv.errors import keep_secret

__all__ = ["ZEROS", "PathArg", "advice", "forget", "is_remote", "local_advice", "place"]

# A path object has lost one slash of its URL. One letter alone would be a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(?!/)")
_LOCAL = re.compile(r"(?:file|local)://?(?=/)")


ZEROS = "zeros:"
"""The place of elements that are zero and lie in no file: what a target has and a source does not count."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a place lies behind a URL: ``s3://bucket/key``, ``hf://org/model`` or any fsspec knows."""
    return "://" in os.fspath(path)


PathArg = str | os.PathLike[str]
"""What the API takes for a path: text, a URL among it, or a path object."""


def place(path: PathArg) -> Path:
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
    from ckptconv.places.remotepath import RemotePath

    if "@" in text:
        _keep_secrets(text)
    return path if isinstance(path, RemotePath) else RemotePath(text)


def _keep_secrets(url: str) -> None:
    """Remember the password of a URL, as it is written and as libraries pass it on."""
    user, at, _ = url.partition(":")[2].lstrip("/").partition("?")[0].rpartition("@")
    if at and ":" in user:
        password = user.partition(":")[2]
        keep_secret(password)
        keep_secret(unquote(password))


_CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
}


def advice(error: OSError) -> str | None:
    """Return what to do about an error of a store behind a URL; None if it is of none."""
    if not isinstance(error.filename, str) or not is_remote(error.filename):
        return None
    scheme = error.filename.partition("://")[0]
    names = _CREDENTIALS.get(scheme, "what the store's own tools take")
    if type(error).__name__ == "NoCredentialsError":
        return f"set credentials in the environment: {names}"
    if isinstance(error, PermissionError):
        return f"see that you may read and write there, and with which credentials: {names}"
    if isinstance(error, FileNotFoundError):
        more = " and the endpoint (AWS_ENDPOINT_URL)" if scheme == "s3" else ""
        return f"check the name of the bucket{more}"
    return "see that the store can be reached, then run again; --resume goes on where a conversion ended"


_BY_NUMBER = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "may you read it, and enter its folder?"),
    errno.EROFS: "write to another folder: this file system takes no writes",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "name a file: this is a folder",
    errno.ELOOP: "remove the link that leads to itself",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space or raise the limit",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (sysctl fs.file-max)",
    errno.EIO: "the disk or the network fails: copy the file elsewhere, and try again with the copy",
    errno.ESTALE: "mount the file system again",
    errno.ETIMEDOUT: "see that the file system answers, and try again",
    errno.ENOMEM: "lower --max-memory or --workers",
}


def local_advice(error: OSError) -> str | None:
    """Return what to do about an error of the operating system; None if nothing is known of it."""
    hint = _BY_NUMBER.get(error.errno or 0)
    if error.errno not in (errno.EACCES, errno.EPERM) or not isinstance(error.filename, str):
        return hint
    with suppress(OSError, ImportError, KeyError):
        import pwd

        uid = os.stat(error.filename).st_uid
        if uid == os.geteuid():
            return "it is yours: give yourself the right (chmod u+rX)"
        owner = pwd.getpwuid(uid).pw_name
        return f"it belongs to {owner}: let them give you the right (chmod u+rX,g+rX), or run as {owner}"
    folder = os.path.dirname(error.filename) or "."
    return f"see who may enter its folder (ls -ld {folder})"


def forget() -> None:
    """Forget the listings of remote folders, so that what is there now is seen."""
    import sys

    if (module := sys.modules.get("ckptconv.places.remote")) is not None:
        module.forget()
