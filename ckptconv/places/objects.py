"""Put objects behind URLs: small ones at once, large ones by parts that nobody sees before all are there."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from ckptconv.errors import UsageError
from ckptconv.places.remote import attempt, split

__all__ = [
    "PART",
    "Upload",
    "begin",
    "claim",
    "delete",
    "is_divisible",
    "known",
    "part_size",
    "put",
    "resume",
    "writable",
]

PART = 8 << 20
"""Bytes of a part of a file below 72 GB; S3 takes from 5 MiB on."""

_PARTS = 9_000  # S3 takes 10,000
_READ_ONLY = ("hf", "http", "https", "github", "git", "zip", "tar", "data")


class Upload(Protocol):
    """An object on its way. Parts come in any order and from any thread; `complete` makes it visible.

    Where `is_divisible` says so, many processes may send parts, each by an upload `known` by its token.
    """

    def part(self, index: int, data: bytearray) -> None:
        """Send the part of that number, from 0 on."""

    def sent(self) -> Mapping[int, str]:
        """Return the receipts of the parts that were sent from here, by their numbers."""

    def took(self, receipts: Mapping[int, str]) -> None:
        """Enter parts that another process has sent."""

    def close(self) -> None:
        """All parts are there."""

    def token(self) -> Mapping[str, Any]:
        """Return what `resume` knows the upload by."""

    def complete(self) -> None:
        """Make the object visible."""

    def abort(self) -> None:
        """Leave nothing behind."""


def part_size(size: int) -> int:
    """Return the size of the parts of an object of ``size`` bytes: a multiple of 4 MiB."""
    return max(PART, -(-size // _PARTS // (4 << 20)) * (4 << 20))


def is_divisible(url: str) -> bool:
    """Whether the parts of an object may come from many processes; else one process sends all of it."""
    return _is_s3(url)


def writable(url: str) -> None:
    """Refuse a place that cannot be written to file by file.

    Raises:
        UsageError: if it is one.
    """
    scheme = url.partition("://")[0]
    if scheme in _READ_ONLY:
        hint = "write to a folder, and upload that"
        raise UsageError(f"{scheme}:// can be read from, not written to", hint=hint)
    split(url)


def put(url: str, data: bytes) -> None:
    """Write a small object whole; it replaces what is there."""
    fs, path = split(url)
    attempt(lambda: fs.pipe_file(path, data), url)


def claim(url: str, data: bytes) -> None:
    """Write a small object where none is; of two at the same time on S3, one succeeds.

    Raises:
        FileExistsError: if there is one.
    """
    fs, path = split(url)
    if not _is_s3(url):
        if attempt(lambda: fs.exists(path), url):
            raise FileExistsError(errno.EEXIST, "exists", url)
        put(url, data)
        return

    def once() -> None:
        bucket, key, _ = fs.split_path(path)
        try:
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except OSError:
            with suppress(FileNotFoundError):
                if fs.cat_file(path) == data:  # it was done; the answer was lost
                    return
            raise

    attempt(once, url)


def delete(url: str) -> None:
    """Delete an object, if it is there."""
    fs, path = split(url)
    with suppress(FileNotFoundError):
        attempt(lambda: fs.rm_file(path), url)


def begin(url: str, size: int) -> Upload:
    """Begin to write an object of ``size`` bytes, in parts of `part_size`."""
    return _S3Upload(url, size) if _is_s3(url) else _Renamed(url, size)


def resume(url: str, size: int, token: Mapping[str, Any]) -> Upload | None:
    """Take up an upload whose parts are all there, None if it is gone."""
    upload = _S3Upload(url, size, token) if _is_s3(url) else _Renamed(url, size, token)
    return upload if upload.is_whole() else None


def known(url: str, token: Mapping[str, Any], size: int = 0) -> Upload:
    """Return an upload that another process has begun: to abort it, or to send parts of ``size`` bytes."""
    return _S3Upload(url, size, token) if _is_s3(url) else _Renamed(url, size, token)


def _is_s3(url: str) -> bool:
    return url.partition("://")[0] in ("s3", "s3a")


class _S3Upload:
    """A multipart upload of S3. Unfinished ones are invisible, and are paid for until they are aborted."""

    def __init__(self, url: str, size: int, token: Mapping[str, Any] | None = None) -> None:
        self._url, self._size = url, size
        self._fs, path = split(url)
        bucket, key, _ = self._fs.split_path(path)
        self._where = {"Bucket": bucket, "Key": key}
        self._lock = threading.Lock()
        if token is not None:
            self._id = str(token.get("upload"))
            self._parts: dict[int, str] = dict(enumerate(token.get("parts", ())))
        else:
            made = attempt(lambda: self._fs.call_s3("create_multipart_upload", **self._where), url)
            self._id, self._parts = made["UploadId"], {}

    def part(self, index: int, data: bytearray) -> None:
        number = {"PartNumber": index + 1, "UploadId": self._id, **self._where}
        sent = attempt(lambda: self._fs.call_s3("upload_part", Body=data, **number), self._url)
        with self._lock:
            self._parts[index] = sent["ETag"]

    def sent(self) -> Mapping[int, str]:
        return dict(self._parts)

    def took(self, receipts: Mapping[int, str]) -> None:
        with self._lock:
            self._parts.update(receipts)

    def close(self) -> None:
        if not self._parts:
            self.part(0, bytearray())

    def token(self) -> Mapping[str, Any]:
        return {"upload": self._id, "parts": [self._parts[i] for i in sorted(self._parts)]}

    def complete(self) -> None:
        parts = [{"PartNumber": i + 1, "ETag": self._parts[i]} for i in sorted(self._parts)]

        def once() -> None:
            try:
                self._fs.call_s3(
                    "complete_multipart_upload",
                    UploadId=self._id,
                    MultipartUpload={"Parts": parts},
                    **self._where,
                )
            except FileNotFoundError:  # no such upload: it was completed, and the answer was lost
                entry = self._fs.info("/".join(self._where.values()), refresh=True)
                if entry["size"] != self._size:
                    raise

        attempt(once, self._url)

    def abort(self) -> None:
        with suppress(FileNotFoundError):
            attempt(
                lambda: self._fs.call_s3("abort_multipart_upload", UploadId=self._id, **self._where),
                self._url,
            )

    def is_whole(self) -> bool:
        """Whether the upload is there, all parts of it."""
        found: dict[int, str] = {}
        size, after = 0, 0
        try:
            while True:
                where = {"UploadId": self._id, "PartNumberMarker": after, **self._where}
                page = attempt(lambda w=where: self._fs.call_s3("list_parts", **w), self._url)  # type: ignore[misc]
                for part in page.get("Parts", ()):
                    found[part["PartNumber"] - 1] = part["ETag"]
                    size += part["Size"]
                if not page.get("IsTruncated"):
                    break
                after = page["NextPartNumberMarker"]
        except OSError:
            return False
        return size == self._size and found == self._parts


class _Renamed:
    """An object written under ``NAME.part`` and renamed, where parts in any order are not known."""

    def __init__(self, url: str, size: int, token: Mapping[str, Any] | None = None) -> None:
        self._url, self._size = url, size
        self._fs, self._path = split(url)
        self._lock = threading.Condition()
        self._waiting: dict[int, bytearray] = {}
        self._next = 0
        self._file: Any = None

    def part(self, index: int, data: bytearray) -> None:
        with self._lock:
            if self._file is None:
                block = part_size(self._size)
                self._file = self._fs.open(self._path + ".part", "wb", block_size=block)
            self._waiting[index] = data
            while (due := self._waiting.pop(self._next, None)) is not None:
                self._file.write(due)
                self._next += 1

    def sent(self) -> Mapping[int, str]:
        return dict.fromkeys(range(self._next), "")

    def took(self, receipts: Mapping[int, str]) -> None:
        self._next = len(receipts)

    def close(self) -> None:
        if self._next == 0:
            self.part(0, bytearray())
        if self._file is not None:
            self._file.close()

    def token(self) -> Mapping[str, Any]:
        return {"upload": ".part"}

    def complete(self) -> None:
        def once() -> None:
            try:
                self._fs.mv(self._path + ".part", self._path)
            except FileNotFoundError:
                if self._fs.info(self._path)["size"] != self._size:
                    raise

        attempt(once, self._url)

    def abort(self) -> None:
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
        delete(self._url + ".part")

    def is_whole(self) -> bool:
        """Whether the file is there under its temporary name."""
        try:
            return bool(self._fs.info(self._path + ".part")["size"] == self._size)
        except FileNotFoundError:
            return False
