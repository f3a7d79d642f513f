"""Lay out a ``.ckpt`` file as MindSpore's ``save_checkpoint`` writes it, byte for byte.

The records and the CRC-32 behind them: mindspore 2.9, ``train/serialization.py`` (``_exec_save``,
``_write_parameter_bytes_data``); `ckptconv.containers.mindspore.mindspore` describes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Final

from isal.isal_zlib import crc32, crc32_combine

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.containers.container import Container
from ckptconv.containers.mindspore.mindspore import DTYPES, TRAILER
from ckptconv.containers.torch.picklevm import short
from ckptconv.dtypes import DType
from ckptconv.errors import PlanError
from ckptconv.records import dataclass

__all__ = ["CONTAINER", "MindSporeLayout", "Part", "layout", "seal", "seal_piece"]

_RECORD: Final = 512 << 20  # SLICE_SIZE, the most bytes of a tensor in one record
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a tensor's row-major elements that lies in a record of its own.

    Attributes:
        placed: The name under which the layout places it.
        start: Its first element in the whole tensor.
        numel: How many elements it has.
    """

    placed: str
    start: int
    numel: int


@dataclass(frozen=True, slots=True)
class MindSporeLayout:
    """Lay out a file, and say which tensors are split over several of its places.

    Attributes:
        file: The layout. A tensor of one record is placed under its own name and shape, a part of a longer
            one as a flat tensor ``NAME[START:STOP]``.
        parts: The parts of each tensor that has several, in order. What fills elements ``start`` up to
            ``start + numel`` of the tensor fills the part.
    """

    file: FileLayout
    parts: Mapping[str, tuple[Part, ...]]


def layout(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], *, crc: bool = False, record: int = _RECORD
) -> MindSporeLayout:
    """Lay out a file.

    Args:
        tensors: Name, element type and shape of each, in the order of the file.
        crc: Whether the CRC-32 of the file goes at its end (``crc_check``); `seal` then fills it in.
        record: The most bytes of a tensor in one record; a multiple of 8.

    Raises:
        PlanError: if a name is given twice, or a tensor is empty or of a type MindSpore does not have.
    """
    placed: list[Placed] = []
    fixed: list[tuple[int, bytes]] = []
    parts: dict[str, tuple[Part, ...]] = {}
    taken: set[str] = set()
    at = 0
    for name, dtype, shape in tensors:
        numel = _checked(name, dtype, shape)
        step = record // dtype.itemsize
        pieces = tuple(
            Part(f"{name}[{start}:{min(start + step, numel)}]", start, min(step, numel - start))
            for start in range(0, numel, step)
        )
        if len(pieces) == 1:
            pieces = (Part(name, 0, numel),)
        else:
            parts[name] = pieces
        for part in pieces:
            if part.placed in taken:
                raise PlanError(f"the tensor name {short(part.placed)} is given twice")
            taken.add(part.placed)
            head = _head(name, dtype, shape, part.numel * dtype.itemsize)
            fixed.append((at, head))
            at += len(head)
            placed.append(Placed(part.placed, dtype, shape if len(pieces) == 1 else (part.numel,), at))
            at += placed[-1].nbytes
    if crc:
        fixed.append((at, TRAILER + bytes(10)))
        at += len(fixed[-1][1])
    return MindSporeLayout(
        FileLayout(at, tuple(fixed), tuple(placed), sealed_by="ckpt" if crc else ""), parts
    )


def seal(layout: FileLayout, crcs: Sequence[int]) -> tuple[tuple[int, bytes], ...]:
    """Return the bytes to write over a finished file once the data's CRC-32 sums are known.

    Args:
        layout: The ``file`` of what `layout` returned with ``crc``.
        crcs: The sum of each placed tensor's bytes, in the order of ``layout.tensors``.
    """
    total = 0
    for (_, head), tensor, crc in zip(layout.fixed[:-1], layout.tensors, crcs, strict=True):
        total = crc32_combine(crc32(head, total), crc, tensor.nbytes)
    return ((layout.fixed[-1][0], TRAILER + total.to_bytes(10, "big")),)


def seal_piece(layout: FileLayout, piece: int, tensor: int, crc: int) -> bytes | None:
    """Return the head of a record, which says no sums; None for the end of the file, which says all."""
    return layout.fixed[piece][1] if piece < len(layout.fixed) - 1 else None


def _checked(name: str, dtype: DType, shape: tuple[int, ...]) -> int:
    """Return the number of elements of a tensor that MindSpore can hold."""
    if dtype not in _NAMES:
        raise PlanError(f"the tensor {short(name)} is {dtype}, a type MindSpore's files do not have")
    numel = prod(shape)
    if numel == 0:
        raise PlanError(
            f"the tensor {short(name)} is empty (shape {list(shape)}), which MindSpore does not save",
            hint=f"leave it out: --drop '{name}'",
        )
    return numel


def _head(name: str, dtype: DType, shape: tuple[int, ...], nbytes: int) -> bytes:
    """Return a record up to its data, which is the last field of every message it lies in."""
    dims = b"".join(b"\x08" + _varint(n) for n in shape)
    kind = _NAMES[dtype].encode()
    inner = dims + b"\x12" + _varint(len(kind)) + kind + b"\x1a" + _varint(nbytes)
    raw = name.encode()
    value = b"\n" + _varint(len(raw)) + raw + b"\x12" + _varint(len(inner) + nbytes) + inner
    return b"\n" + _varint(len(value) + nbytes) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


CONTAINER = Container("ckpt", lambda tensors: layout(tensors).file, seal, seal_piece)
