"""Lay out a file as ``torch.save`` writes it: a tree of values, or an ordered dict of tensors.

The archive: torch 2.13, ``torch/serialization.py`` (``_save``) and ``caffe2/serialize/inline_container.cc``.
It is byte-identical to torch's but for ``.data/serialization_id``, a digest that torch makes of hashes of
its C++ library; ours is made of the tensors' names and CRC-32 sums.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import prod
from struct import Struct
from typing import Final

from isal.isal_zlib import crc32

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.containers.container import Container
from ckptconv.containers.torch.picklevm import short
from ckptconv.containers.torch.torchpickle import TensorRef, dump
from ckptconv.dtypes import DType
from ckptconv.errors import PlanError
from ckptconv.records import dataclass

__all__ = [
    "ALIGN",
    "CONTAINER",
    "TensorRef",
    "complete",
    "joined",
    "layout",
    "layout_tree",
    "renamed",
    "seal",
    "seal_piece",
]

_ROOT: Final = "archive"
_SERIALIZATION: Final = ".data/serialization_id"
ALIGN: Final = 64
_32: Final = 0xFFFFFFFF
_16: Final = 0xFFFF
_UTF8: Final = 0x0800
_DESCRIPTOR: Final = 0x0008
_OTHERS: Final = 6  # entries beside the tensors'
_IDENTIFIER: Final = 40  # digits
_DESCRIPTOR_CRC: Final = 4  # positions of the checksum in a data descriptor,
_CENTRAL_CRC: Final = 16  # and in a directory entry
_U32 = Struct("<L")
_LOCAL = Struct("<4s5H3L2H")
_CENTRAL = Struct("<4s6H3L5H2L")
_END64 = Struct("<4sQ2H2L4Q")
_LOCATOR = Struct("<4sLQL")
_END = Struct("<4s4H2LH")

Spec = tuple[str, DType, tuple[int, ...]]


def layout(tensors: Iterable[Spec]) -> FileLayout:
    """Lay out a file that ``torch.load`` opens, also with ``weights_only`` and ``mmap``.

    Args:
        tensors: Name, element type and shape of each, in the order of the dict. Each gets a storage of
            its own.

    Raises:
        PlanError: if a name is given twice.
    """
    refs: OrderedDict[str, TensorRef] = OrderedDict()
    for spec in tensors:
        ref = TensorRef(*spec)
        if ref.name in refs:
            raise PlanError(f"the tensor name {short(ref.name)} is given twice")
        refs[ref.name] = ref
    return layout_tree(refs)


def layout_tree(root: object) -> FileLayout:
    """Lay out a file of any tree that :func:`~ckptconv.containers.torch.torchpickle.dump` can write.

    Each name of a :class:`TensorRef` gets one storage, in the order they are met.

    Raises:
        PlanError: if the tree holds what cannot be written, or a name with two types or shapes.
    """
    pickle, refs = dump(root)
    if len(pickle) >= _32:
        raise PlanError(f"a pickle of {len(pickle):,} bytes")
    return _assemble(pickle, refs, [0] * len(refs))


def renamed(layout: FileLayout, names: Mapping[str, str]) -> FileLayout:
    """Lay out the file of the same tree with other names of its tensors' data.

    Args:
        layout: What :func:`layout_tree` returned.
        names: The new name by each old one.
    """
    tensors = tuple([Placed(names[t.name], t.dtype, t.shape, t.offset) for t in layout.tensors])
    old, new = (_identifier([(t.name, 0) for t in each]) for each in (layout.tensors, tensors))
    *pieces, (at, tail) = layout.fixed
    text = tail.rindex(old)
    entry = tail.rindex(f"{_ROOT}/{_SERIALIZATION}".encode()) - _CENTRAL.size
    sums = dict.fromkeys((text + _IDENTIFIER + _DESCRIPTOR_CRC, entry + _CENTRAL_CRC), crc32(new))
    tail = _with(tail, sums, (text, new))
    return FileLayout(layout.size, (*pieces, (at, tail)), tensors, layout.sealed_by)


def complete(root: object) -> bytes:
    """Return the whole file of a tree, in which all tensors are empty.

    Raises:
        PlanError: as :func:`layout_tree` does, or if a tensor has data.
    """
    laid = layout_tree(root)
    if any(t.nbytes for t in laid.tensors):
        raise PlanError("a file with tensors cannot be made without their data")
    return b"".join(piece for _, piece in laid.fixed)


def joined(parts: Iterable[FileLayout]) -> FileLayout:
    """Lay out a file that holds several archives, each at the next multiple of `ALIGN` bytes."""
    fixed: list[tuple[int, bytes]] = []
    tensors: list[Placed] = []
    size = 0
    for part in parts:
        size += -size % ALIGN
        fixed += [(size + at, piece) for at, piece in part.fixed]
        tensors += [Placed(t.name, t.dtype, t.shape, size + t.offset) for t in part.tensors]
        size += part.size
    return FileLayout(size, tuple(fixed), tuple(tensors), sealed_by="bin" if tensors else "")


def seal(layout: FileLayout, crcs: Sequence[int]) -> tuple[tuple[int, bytes], ...]:
    """Return the bytes to write over a finished file once the data's CRC-32 sums are known.

    Args:
        layout: What :func:`layout`, :func:`layout_tree` or :func:`joined` returned.
        crcs: The sum of each tensor's bytes, in the order of ``layout.tensors``.
    """
    changed: list[tuple[int, bytes]] = []
    done = 0
    for start, one in _archives(layout):
        if not one.tensors:  # complete as it is
            continue
        known = crcs[done : done + len(one.tensors)]
        done += len(one.tensors)
        if len(one.tensors) == 1:
            at, tail = one.fixed[-1]
            named = zip(one.tensors, known, strict=True)
            changed += [(start + at, _sealed_tail(tail, tensor.name, crc)) for tensor, crc in named]
            continue
        sealed = _assemble(_pickle_in(one), one.tensors, known)
        pairs = zip(one.fixed, sealed.fixed, strict=True)
        changed += [(start + at, new) for (at, old), (_, new) in pairs if old != new]
    return tuple(changed)


def seal_piece(layout: FileLayout, piece: int, tensor: int, crc: int) -> bytes | None:
    """Return what lies behind a tensor's data, as `seal` leaves it.

    Args:
        layout: What :func:`layout`, :func:`layout_tree` or :func:`joined` returned.
        piece: The number of the piece of ``fixed``.
        tensor: The number of the last tensor before it.
        crc: The sum of its bytes.

    Returns:
        The piece; None where it is the directory of several tensors.
    """
    (at, data), one = layout.fixed[piece], layout.tensors[tensor]
    if at != one.offset + one.nbytes:  # the head of an archive
        return data
    if data[-_END.size :][:4] == b"PK\5\6":
        return _sealed_tail(data, one.name, crc) if _tail(data) is not None else None
    return _with(data, {_DESCRIPTOR_CRC: crc}) if one.nbytes else data


@dataclass(frozen=True, slots=True)
class _Tail:
    """Say where the end of an archive of one tensor says sums.

    Attributes:
        data: Positions of the sum of the tensor's data.
        identifier: Where the serialization's identifier begins.
        identified: Positions of its sum.
    """

    data: tuple[int, ...]
    identifier: int
    identified: tuple[int, int]


@lru_cache(maxsize=64)  # there are as many as types and shapes: a model has few
def _tail(piece: bytes) -> _Tail | None:
    """Read the end of an archive; None if there are other tensors in it than one."""
    end = len(piece) - _END.size - _LOCATOR.size - _END64.size
    *_, count, size, _ = _END64.unpack_from(piece, end)
    if count != _OTHERS + 1:
        return None
    at, entries = end - size, []
    for _ in range(count):
        fields = _CENTRAL.unpack_from(piece, at)
        entries.append((at + _CENTRAL_CRC, bool(fields[11])))
        at += _CENTRAL.size + sum(fields[10:13])
    (data, _), (identified, wide) = entries[-3], entries[-1]
    descriptor = end - size - (24 if wide else 16)
    has_data = piece[:4] == b"PK\7\x08"
    return _Tail(
        (_DESCRIPTOR_CRC, data) if has_data else (data,),
        descriptor - _IDENTIFIER,
        (descriptor + _DESCRIPTOR_CRC, identified),
    )


def _sealed_tail(piece: bytes, name: str, crc: int) -> bytes:
    """Return the end of an archive of one tensor with the sum of its data."""
    tail = _tail(piece)
    assert tail is not None
    made = _identifier(((name, crc),))
    sums = dict.fromkeys(tail.data, crc) | dict.fromkeys(tail.identified, crc32(made))
    return _with(piece, sums, (tail.identifier, made))


def _with(piece: bytes, sums: Mapping[int, int], text: tuple[int, bytes] = (0, b"")) -> bytes:
    """Return a piece with sums at these positions, and a text at another."""
    changed = bytearray(piece)
    for at, crc in sums.items():
        _U32.pack_into(changed, at, crc)
    at, raw = text
    changed[at : at + len(raw)] = raw
    return bytes(changed)


def _identifier(sums: Iterable[tuple[str, int]]) -> bytes:
    """Return the identifier of a serialization whose tensors have these names and sums."""
    digest = blake2b(digest_size=16)
    for name, crc in sums:
        digest.update(f"{len(name)}:{name}:{crc};".encode("utf-8", "surrogatepass"))
    return f"{int.from_bytes(digest.digest(), 'big'):0{_IDENTIFIER}d}".encode()


def _archives(layout: FileLayout) -> Iterator[tuple[int, FileLayout]]:
    """Yield where each archive begins, and its own layout; its last piece ends with the end record."""
    pieces: list[tuple[int, bytes]] = []
    taken = 0
    for at, piece in layout.fixed:
        pieces.append((at, piece))
        if piece[-_END.size :][:4] != b"PK\5\6":
            continue
        start, end, first = pieces[0][0], at + len(piece), taken
        while taken < len(layout.tensors) and layout.tensors[taken].offset < end:
            taken += 1
        fixed = tuple([(p - start, data) for p, data in pieces])
        yield start, FileLayout(end - start, fixed, layout.tensors[first:taken])
        pieces = []


def _pickle_in(layout: FileLayout) -> bytes:
    """Return the first entry, aligned in the first piece, with its size in the directory in the last."""
    start, last = layout.fixed[-1]
    end = len(last) - _END.size - _LOCATOR.size - _END64.size
    directory = _END64.unpack_from(last, end)[-1]
    size = _CENTRAL.unpack_from(last, directory - start)[9]
    return layout.fixed[0][1][ALIGN : ALIGN + size]


def _assemble(pickle: bytes, tensors: Sequence[TensorRef | Placed], crcs: Sequence[int]) -> FileLayout:
    archive = _Archive()
    archive.add("data.pkl", pickle)
    archive.add(".format_version", b"1")
    archive.add(".storage_alignment", str(ALIGN).encode())
    archive.add("byteorder", b"little")
    placed: list[Placed] = []
    for i, (tensor, crc) in enumerate(zip(tensors, crcs, strict=True)):
        nbytes = prod(tensor.shape) * tensor.dtype.itemsize
        at = archive.reserve(f"data/{i}", nbytes, crc)
        placed.append(Placed(tensor.name, tensor.dtype, tensor.shape, at))
    archive.add("version", b"3\n")
    names = (tensor.name for tensor in tensors)
    archive.add(_SERIALIZATION, _identifier(zip(names, crcs, strict=True)))
    return FileLayout(archive.finish(), tuple(archive.pieces), tuple(placed), sealed_by="bin")


class _Archive:
    """Collect the bytes of the archive around the tensors' data, as miniz writes them.

    Attributes:
        pieces: Finished byte strings at their offsets, each reaching up to a tensor's data.
    """

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self._piece = bytearray()
        self._at = 0  # of the piece
        self._central = bytearray()
        self._count = 0

    def add(self, name: str, data: bytes) -> None:
        """Add an entry whose data is known."""
        crc = crc32(data)
        wide = self._open(name, len(data), crc)
        self._piece += data
        self._close(len(data), crc, wide)

    def reserve(self, name: str, size: int, crc: int) -> int:
        """Add an entry whose data is written by others; return where it goes."""
        wide = self._open(name, size, crc)
        at = self._cursor
        self._flush(size)
        self._close(size, crc, wide)
        return at

    def finish(self) -> int:
        """Add the central directory; return the size of the file."""
        at = self._cursor
        size = len(self._central)
        self._piece += self._central
        self._piece += _END64.pack(
            b"PK\6\6", _END64.size - 12, 0x031E, 45, 0, 0, self._count, self._count, size, at
        )
        self._piece += _LOCATOR.pack(b"PK\6\7", 0, at + size, 1)
        count = min(self._count, _16)
        self._piece += _END.pack(b"PK\5\6", 0, 0, count, count, min(size, _32), min(at, _32), 0)
        self._flush(0)
        return self._at

    @property
    def _cursor(self) -> int:
        return self._at + len(self._piece)

    def _flush(self, skip: int) -> None:
        self.pieces.append((self._at, bytes(self._piece)))
        self._at = self._cursor + skip
        self._piece = bytearray()

    def _open(self, name: str, size: int, crc: int) -> bool:
        """Add the headers of an entry; return whether they are those of zip64."""
        at = self._cursor
        raw = f"{_ROOT}/{name}".encode()
        flags = _UTF8 | (_DESCRIPTOR if size else 0)
        extra = _zip64(at, size, size)
        # The descriptor holds the sizes; miniz still leaves one of them in the local header.
        local_extra = _zip64(at, size, 0)
        pad = -(at + _LOCAL.size + len(raw) + len(extra) + 4) % ALIGN
        local_extra += b"FB" + pad.to_bytes(2, "little") + b"Z" * pad
        self._piece += _LOCAL.pack(b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(raw), len(local_extra))
        self._piece += raw + local_extra
        short_size = min(size, _32)
        self._central += _CENTRAL.pack(
            b"PK\1\2", 0, 0, flags, 0, 0, 0, crc, short_size, short_size,
            len(raw), len(extra), 0, 0, 0, 0, min(at, _32),
        )  # fmt: skip
        self._central += raw + extra
        self._count += 1
        return bool(extra)

    def _close(self, size: int, crc: int, wide: bool) -> None:
        """Add the data descriptor; an empty entry has none."""
        if size:
            width = 8 if wide else 4
            self._piece += b"PK\7\x08" + crc.to_bytes(4, "little") + size.to_bytes(width, "little") * 2


def _zip64(at: int, size: int, packed: int) -> bytes:
    """Return the extra field for what does not fit into 32 bits; ``packed`` stands where ``size`` is wide."""
    values = [size, packed] if size >= _32 else []
    if at >= _32:
        values.append(at)
    if not values:
        return b""
    body = b"".join(v.to_bytes(8, "little") for v in values)
    return b"\1\0" + len(body).to_bytes(2, "little") + body


# transformers 5.23, utils/__init__.py (WEIGHTS_NAME)
CONTAINER = Container("bin", layout, seal, seal_piece, stem="pytorch_model")
