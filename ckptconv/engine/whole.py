"""Tell whether a finished file still holds the bytes that its digest in the journal was taken of."""

from __future__ import annotations

from pathlib import Path

import xxhash
from isal.isal_zlib import crc32

from ckptconv.containers.base import FileLayout
from ckptconv.containers.container import seal_of
from ckptconv.engine.options import DIGEST_BLOCK

__all__ = ["is_whole"]


def is_whole(path: Path, layout: FileLayout, digest: str) -> bool:
    """Read a file and compare it with its digest, and the sums it holds with its data.

    Args:
        path: The file, under its temporary or its final name.
        layout: What the plan says of it.
        digest: What `Ledger.whole` entered: taken with zeros in place of the sums that ``seal`` writes.
    """
    if path.stat().st_size != layout.size:
        return False
    sums = [0] * len(layout.tensors)
    blocks = b""
    with path.open("rb") as file:
        for lo in range(0, max(layout.size, 1), DIGEST_BLOCK):
            block = bytearray(file.read(min(DIGEST_BLOCK, layout.size - lo)))
            if layout.needs_crc:
                _sum(block, lo, layout, sums)
                for at, piece in layout.fixed:
                    a, b = max(at, lo), min(at + len(piece), lo + len(block))
                    if a < b:
                        block[a - lo : b - lo] = piece[a - at : b - at]
            blocks += xxhash.xxh3_64(block).digest()
        if xxhash.xxh3_128(blocks).hexdigest() != digest:
            return False
        pieces = dict(layout.fixed) | dict(seal_of(layout)[0](layout, sums)) if layout.needs_crc else {}
        for at, piece in pieces.items():
            file.seek(at)
            if file.read(len(piece)) != piece:
                return False
    return True


def _sum(block: bytearray, lo: int, layout: FileLayout, sums: list[int]) -> None:
    """Carry the CRC-32 of each tensor on over its bytes in a block."""
    view = memoryview(block)
    for i, tensor in enumerate(layout.tensors):
        a, b = max(tensor.offset, lo), min(tensor.offset + tensor.nbytes, lo + len(block))
        if a < b:
            sums[i] = crc32(view[a - lo : b - lo], sums[i])
