"""Ask file systems behind URLs, by way of fsspec: try again what may succeed, remember listings."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ckptconv.errors import UsageError

__all__ = [
    "BLOCKS",
    "Entry",
    "NoCredentialsError",
    "attempt",
    "entry_of",
    "fetch",
    "file_system",
    "forget",
    "listing",
    "size_of",
    "split",
]

T = TypeVar("T")
Entry = Mapping[str, Any]
"""What fsspec tells of an object: ``name``, ``size``, ``type``, and of its version what there is."""

_KEPT = 32 << 20
_TRIES = 5
_WAIT = 0.4  # seconds before the second try; doubled from try to try

# Asked again, these say the same. The names are of exceptions of packages that need not be installed.
_FINAL = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ImportError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)
_NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST}
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound")

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class NoCredentialsError(OSError):
    """Say that a store asks for credentials and there are none: of what is there, nothing is known."""


_lock = threading.Lock()
_listings: dict[str, dict[str, Entry] | None] = {}


def file_system(scheme: str, url: str) -> Any:
    """Return fsspec's file system for a URL; credentials and endpoint come from the usual environment.

    Raises:
        UsageError: if the scheme is unknown or its package is missing.
    """
    try:
        import fsspec

        options: dict[str, Any] = {}
        if scheme in ("s3", "s3a"):
            # `attempt` tries again. The timeouts are of one answer's next bytes, not of a whole transfer.
            config = {"retries": {"total_max_attempts": 1}, "max_pool_connections": 32}
            options["config_kwargs"] = config | fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        fs, _ = fsspec.core.url_to_fs(url, **options)
        if scheme in ("s3", "s3a"):
            fs.retries = 1
        return fs
    except ImportError as e:
        package = _PACKAGES.get(scheme)
        more = "" if package in (None, "s3fs") else f" {package}"
        raise UsageError(
            f"{scheme}:// needs a package that is not installed ({e})",
            hint=f"pip install 'ckptconv[remote]'{more}",
        ) from e
    except ValueError as e:
        raise UsageError(f"{url}: {e}", hint="check the URL's scheme") from e


def split(url: str) -> tuple[Any, str]:
    """Return a URL's file system and its path there."""
    scheme, sep, _ = url.partition("://")
    if not sep:
        raise FileNotFoundError(errno.ENOENT, "leads out of what was named", url)
    fs = file_system(scheme, url)
    return fs, str(fs._strip_protocol(url))


def attempt(what: Callable[[], T], where: str) -> T:
    """Do something that may fail for a while: a busy server, a broken connection, no answer in time.

    Args:
        what: What to do; it may be done several times.
        where: The URL, for errors.

    Raises:
        OSError: if it keeps failing, or for a reason that stays.
    """
    for i in range(_TRIES):
        try:
            return what()
        except _FINAL as e:
            if isinstance(e, OSError):
                if e.errno is None:  # the packages give a text alone
                    e.errno, e.strerror = _NUMBERS.get(type(e), errno.EIO), str(e) or type(e).__name__
                e.filename = e.filename or where
            raise
        except Exception as e:
            if type(e).__name__ in _CREDENTIALS:
                raise NoCredentialsError(errno.EACCES, f"no credentials: {e}", where) from e
            if i == _TRIES - 1:
                said = f"{type(e).__name__}: {e}".removesuffix(": ")
                raise OSError(errno.EIO, f"given up after {_TRIES} tries: {said}", where) from e
            time.sleep(_WAIT * 2**i * random.uniform(0.75, 1.25))
    raise AssertionError("unreachable")


def fetch(url: str, start: int, end: int) -> bytes:
    """Return bytes ``start`` up to ``end`` of an object, in one request; fewer where it ends.

    Raises:
        OSError: if the object cannot be read.
    """
    fs, path = split(url)

    def once() -> bytes:
        data = fs.cat_file(path, start=start, end=end)
        if len(data) < end - start and len(data) < size() - start:
            raise ConnectionError(f"{len(data)} bytes came where {end - start} were asked for")
        if len(data) > end - start:
            raise OSError("the server does not answer requests for a part of a file")
        return bytes(data)

    def size() -> int:
        return int(fs.info(path)["size"])

    return attempt(once, url)


def listing(url: str) -> dict[str, Entry] | None:
    """Return a folder's entries by name, None if there is no such folder; remembered until `forget`.

    One request tells of a thousand files what would else take one for each.
    """
    with _lock:
        if url in _listings:
            return _listings[url]
    fs, path = split(url)

    def once() -> dict[str, Entry] | None:
        try:
            found = fs.ls(path, detail=True, refresh=True)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # the hub has no listing of an owner
            return None
        base = path.rstrip("/")
        names = {str(e["name"]).rstrip("/"): e for e in found}
        if base in names and names[base]["type"] == "file":
            return None  # a file, listed as itself
        return {n.rsplit("/", 1)[-1]: e for n, e in names.items() if n != base}

    found = attempt(once, url)
    with _lock:
        _listings[url] = found
    return found


def entry_of(url: str, parent: str | None) -> Entry | None:
    """Return what is known of a file or folder, None if there is none."""
    name = url.rsplit("/", 1)[-1]
    if parent is not None:
        try:
            there = listing(parent)
        except PermissionError:  # objects may be read where their folder may not be listed
            there = None
            fs, path = split(url)
            try:
                return attempt(lambda: fs.info(path), url)  # type: ignore[no-any-return]
            except (FileNotFoundError, PermissionError):
                return None
        if there is not None:
            return there.get(name)
    try:
        found = listing(url)
    except PermissionError:
        return None
    return None if found is None else {"name": name, "type": "directory", "size": 0}


def size_of(url: str, entry: Entry) -> int:
    """Return the length of an object in bytes; servers of plain HTTP list files without.

    Raises:
        OSError: if the server does not tell it.
    """
    size = entry.get("size")
    if size is None and entry.get("type") == "file":
        fs, path = split(url)
        size = attempt(lambda: fs.info(path), url).get("size")
        if size is None:
            raise OSError(errno.EIO, "the server does not tell how long the file is", url)
    return int(size or 0)


def forget() -> None:
    """Forget all listings and blocks."""
    with _lock:
        _listings.clear()
    BLOCKS.clear()


class Blocks:
    """Remember pieces of objects that were read for their metadata, 32 MiB of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: dict[str, dict[int, bytes]] = {}
        self._held = 0

    def of(self, url: str) -> dict[int, bytes]:
        """Return the pieces of an object by their first byte."""
        with self._lock:
            return dict(self._blocks.get(url, {}))

    def add(self, url: str, first: int, data: bytes) -> None:
        """Remember a piece; the objects whose pieces came first are forgotten for it."""
        with self._lock:
            pieces = self._blocks.setdefault(url, {})
            self._held += len(data) - len(pieces.get(first, b""))
            pieces[first] = data
            while self._held > _KEPT and len(self._blocks) > 1:
                oldest = next(u for u in self._blocks if u != url)
                self._held -= sum(map(len, self._blocks.pop(oldest).values()))
            while self._held > _KEPT and len(pieces) > 1:
                self._held -= len(pieces.pop(next(iter(pieces))))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._blocks.clear()
            self._held = 0


BLOCKS = Blocks()
