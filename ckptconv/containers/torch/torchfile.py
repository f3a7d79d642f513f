"""Open what ``torch.save`` wrote: tensors are located, everything else is inert, no data is read.

Both containers are known: the zip archive (torch >= 1.6) and the stream before it, which DeepSpeed still
writes with ``checkpoint_serialization: false``. Their layout: torch 2.13, ``torch/serialization.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike, fspath
from typing import Final, Literal

from ckptconv.containers.torch import inert
from ckptconv.containers.torch.nesting import check_nesting
from ckptconv.containers.torch.picklevm import short
from ckptconv.containers.torch.statedict import state_dict_of
from ckptconv.containers.torch.torchtensors import FileStorage, TensorHooks, storage_dtype
from ckptconv.containers.torch.zipindex import ZipIndex
from ckptconv.dtypes import DType
from ckptconv.errors import FormatError
from ckptconv.places.places import is_remote
from ckptconv.places.regular import open_binary
from ckptconv.places.window import Window
from ckptconv.records import dataclass

__all__ = ["FileStorage", "TorchFile", "open_torch", "state_dict_of"]

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
_MAX_BYTEORDER: Final = 16
_LEGACY_LIMITS: Final = inert.Limits(size=1 << 28)

# What a file that is not torch's begins with, what that is, and what to do.
_LOOKS_LIKE: Final = (
    (b"version https://git-lfs", "a Git LFS pointer", "run git lfs pull"),
    (b"<!doctype html", "an HTML page", "the download failed; fetch the file again"),
    (b"<html", "an HTML page", "the download failed; fetch the file again"),
    (b"\x1f\x8b", "gzip", "unpack it first"),
    (b"\xfd7zxz", "xz", "unpack it first"),
    (b"(\xb5/\xfd", "zstd", "unpack it first"),
    (b"\x89hdf", "HDF5", "ckptconv does not read HDF5"),
    (b"\x93numpy", "a numpy array", "ckptconv does not read .npy files"),
    (b"gguf", "GGUF", "ckptconv does not read GGUF"),
    (b"{", "JSON", "give the weights' file or its folder"),
)


@dataclass(frozen=True, slots=True)
class TorchFile:
    """Hold what a torch file says.

    Attributes:
        path: The file.
        container: ``zip`` or ``legacy``.
        root: The saved object; tensors in it are :class:`~ckptconv.containers.base.FileTensor`, storages
            saved by themselves :class:`FileStorage`, objects of other classes :class:`inert.Record`.
        tensors: Number of tensors the pickle rebuilds.
    """

    path: str
    container: Literal["zip", "legacy"]
    root: object
    tensors: int


def open_torch(
    path: str | PathLike[str], *, offset: int = 0, length: int | None = None, exact: bool = False
) -> TorchFile:
    """Read the structure of a file written by ``torch.save``; of its tensors, only where they are.

    Args:
        path: The file.
        offset: Where in the file the container begins (torch's distributed checkpoints hold many).
        length: Its length in bytes; by default up to the end of the file.
        exact: Whether values are to be written again, see :func:`inert.load`; parameters stay records of
            their calls, and so do tensors of subclasses.

    Raises:
        FormatError: if it is no torch file, damaged, hostile, or of a kind that cannot be read.
    """
    name = fspath(path)
    with open_binary(name) as file:
        window = Window(file, name, offset, length)
        head = window.read(512)
        try:
            opener = (
                _open_zip if head.startswith(b"PK\3\4") else _open_legacy if head[:1] == b"\x80" else None
            )
            if opener is not None:
                found = opener(window, exact)
                check_nesting(found.root)
                return found
        except FormatError as error:
            if error.where is None:
                raise FormatError(error.message, where=name, hint=error.hint) from error
            raise
    raise _foreign(head, window)


def _foreign(head: bytes, window: Window) -> FormatError:
    """Say what a file that is not torch's looks like."""
    if not head:
        return FormatError("the file is empty", where=window.path, hint="copy or download it again")
    if head[257:262] == b"ustar":
        return FormatError(
            "a tar file of torch before 0.1.10", where=window.path, hint="load and save it with torch first"
        )
    start = head.lstrip().lower()
    for magic, what, hint in _LOOKS_LIKE:
        if start.startswith(magic):
            return FormatError(f"not a torch file: it looks like {what}", where=window.path, hint=hint)
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < window.size:
        return FormatError(
            "not a torch file: it looks like safetensors",
            where=window.path,
            hint="rename it to end in .safetensors",
        )
    return FormatError(
        f"not a torch file: it begins with {head[:8]!r}", where=window.path, hint="check what wrote it"
    )


@dataclass(frozen=True, slots=True)
class _StorageId:
    """What a persistent id says: key, type, bytes of an element, class if odd, elements, and view."""

    key: str
    dtype: DType | None
    itemsize: int
    odd: str | None
    numel: int
    view: object

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


def _storage_id(pid: object, fields: tuple[int, ...]) -> _StorageId:
    """Read a persistent id."""
    if type(pid) is not tuple or len(pid) not in fields or pid[0] != "storage":
        raise FormatError("a persistent id that names no storage")
    _, cls, key, _, numel, *view = pid
    dtype, itemsize, odd = storage_dtype(cls)
    if type(key) is not str or type(numel) is not int or numel < 0:
        raise FormatError("a persistent id of a storage without key and length")
    return _StorageId(key, dtype, itemsize, odd, numel, view[0] if view else None)


# The zip archive


def _open_zip(window: Window, exact: bool) -> TorchFile:
    index = ZipIndex(window)
    root = _archive_root(index, window)
    if (order := f"{root}/byteorder") in index.sizes and index.read(order, _MAX_BYTEORDER) != b"little":
        raise FormatError("the tensors are stored big-endian", where=window.path)
    if is_remote(window.path):
        index.expect(name for name in index.sizes if name.startswith(f"{root}/data/"))
    located: dict[str, tuple[int, int]] = {}

    def storage(pid: object) -> FileStorage:
        found = _storage_id(pid, (5,))
        key = found.key
        if key not in located:
            entry = f"{root}/data/{key}"
            if entry not in index.sizes:
                raise FormatError(f"the data of storage {short(key)} is not in the archive")
            begin, size = index.locate(entry)
            located[key] = (window.start + begin, size)
        at, size = located[key]
        if found.nbytes != size:
            raise FormatError(
                f"storage {short(key)} should have {found.nbytes:,} bytes; the archive holds {size:,}"
            )
        return FileStorage(key, found.dtype, at, size, (at, size), found.odd)

    tensors = TensorHooks(window.path, storage, exact)
    limits = inert.Limits()
    data = index.read(f"{root}/data.pkl", limits.size)
    value = inert.load(
        data, persistent=tensors.resolve, hooks=tensors.hooks, limits=limits, where=window.path, exact=exact
    )
    return TorchFile(window.path, "zip", value, tensors.count)


def _archive_root(index: ZipIndex, window: Window) -> str:
    """Return the one top folder of the archive."""
    pickles = [name for name in index.sizes if name.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        what = "several" if pickles else "no"
        raise FormatError(
            f"a zip archive with {what} data.pkl is not a torch file",
            where=window.path,
            hint="check what wrote it",
        )
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/constants.pkl" in index.sizes or any(
        name.startswith(f"{root}/code/") for name in index.sizes
    ):
        raise FormatError(
            "a TorchScript archive (torch.jit.save): it holds code",
            where=window.path,
            hint="save the model's state_dict() with torch.save",
        )
    return root


# The stream


def _open_legacy(window: Window, exact: bool) -> TorchFile:
    at = _legacy_head(window)
    declared: dict[str, tuple[int, int]] = {}  # key -> elements, bytes of one

    def declare(pid: object) -> object:
        if _is_module(pid):
            return pid[1]  # type: ignore[index]
        found = _storage_id(pid, (5, 6))
        entry = declared.setdefault(found.key, (found.numel, found.itemsize))
        if entry[0] * entry[1] != found.nbytes:
            raise FormatError(f"two lengths are given for storage {short(found.key)}")
        return FileStorage(found.key, found.dtype, 0, 0, (0, 0))

    _, after = _load_legacy(window, at, persistent=declare)
    keys, after = _load_legacy(window, after)
    located = _walk_storages(window, keys, after, declared)

    def storage(pid: object) -> object:
        if _is_module(pid):
            return pid[1]  # type: ignore[index]
        found = _storage_id(pid, (5, 6))
        if found.key not in located:
            raise FormatError(f"the data of storage {short(found.key)} is not in the file")
        return _view_of(found, located[found.key])

    tensors = TensorHooks(window.path, storage, exact)
    value, _ = _load_legacy(window, at, persistent=storage, hooks=tensors, exact=exact)
    return TorchFile(window.path, "legacy", value, tensors.count)


def _load_legacy(
    window: Window,
    at: int,
    *,
    persistent: Callable[[object], object] | None = None,
    hooks: TensorHooks | None = None,
    exact: bool = False,
) -> tuple[object, int]:
    return inert.load_at(
        window,
        at,
        persistent=persistent,
        hooks=hooks.hooks if hooks else None,
        limits=_LEGACY_LIMITS,
        where=window.path,
        exact=exact,
    )


def _legacy_head(window: Window) -> int:
    """Check the three pickles before the object; return where that begins."""
    magic, at = _load_legacy(window, 0)
    if magic != _MAGIC:
        raise FormatError(
            "a pickle, but not of torch.save", where=window.path, hint="only files of torch.save can be read"
        )
    protocol, at = _load_legacy(window, at)
    if protocol != _PROTOCOL:
        raise FormatError("a torch file of an unknown legacy protocol", where=window.path)
    system, at = _load_legacy(window, at)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise FormatError("the tensors are stored big-endian", where=window.path)
    return at


def _is_module(pid: object) -> bool:
    """Whether the id is that of an nn.Module class, saved with its source: ``("module", cls, ...)``."""
    return type(pid) is tuple and len(pid) == 4 and pid[0] == "module"


def _walk_storages(
    window: Window, keys: object, at: int, declared: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return position and length of every storage after the pickles: each an int64 count, then its bytes."""
    if type(keys) is not list or any(type(k) is not str for k in keys):
        raise FormatError("the list of storages is not a list of keys")
    located: dict[str, tuple[int, int]] = {}
    for key in keys:
        if key not in declared or key in located:
            raise FormatError(f"storage {short(key)} is stored but not used, or stored twice")
        numel, itemsize = declared[key]
        found = int.from_bytes(window.read_at(at, 8), "little", signed=True)
        if found != numel:
            raise FormatError(f"storage {short(key)} should have {numel:,} elements; the file says {found:,}")
        at += 8
        located[key] = (window.start + at, numel * itemsize)
        at += numel * itemsize
        if at > window.size:
            raise FormatError(
                f"the file ends {at - window.size:,} bytes early, in storage {short(key)}",
                where=window.path,
                hint="copy the file again",
            )
    if at != window.size:
        raise FormatError(f"{window.size - at:,} bytes after the last storage", where=window.path)
    return located


def _view_of(found: _StorageId, whole: tuple[int, int]) -> FileStorage:
    """Return the storage, or the part of it that ``(key, offset, elements)`` names (torch before 0.4)."""
    at, size = whole
    view = found.view
    if view is None:
        return FileStorage(found.key, found.dtype, at, size, whole, found.odd)
    if type(view) is not tuple or len(view) != 3 or any(type(n) is not int or n < 0 for n in view[1:]):
        raise FormatError(f"a view of storage {short(found.key)} that is none")
    offset, length = view[1] * found.itemsize, view[2] * found.itemsize
    if offset + length > size:
        raise FormatError(f"a view reaches beyond the end of storage {short(found.key)}")
    return FileStorage(found.key, found.dtype, at + offset, length, whole, found.odd)
