"""Take integers of a few bits out of words of 32."""

from __future__ import annotations

from functools import cache

import numpy as np

from ckptconv.numbers.codecs.base import Array

__all__ = ["unpack_columns", "unpack_rows", "word_range"]


def word_range(lo: int, hi: int, bits: int, *, dense: bool = True) -> tuple[int, int]:
    """Return the first word of codes ``lo`` up to ``hi``, and one past the last.

    Args:
        lo: First code.
        hi: One past the last.
        bits: Bits of each.
        dense: Whether a code may begin in one word and end in the next; else ``32 // bits`` are in each.
    """
    if dense:
        return lo * bits // 32, -(-hi * bits // 32)
    each = 32 // bits
    return lo // each, -(-hi // each)


def unpack_columns(words: Array, lo: int, hi: int, bits: int, *, dense: bool = True, less: int = 0) -> Array:
    """Return codes ``lo`` up to ``hi`` of each row, as float32, the low bits of a word first.

    Args:
        words: ``[rows, words]``, int32, those that `word_range` names.
        lo: First code.
        hi: One past the last.
        bits: Bits of each: 1 to 8.
        dense: As of `word_range`.
        less: What to take away from each.
    """
    first, _ = word_range(lo, hi, bits, dense=dense)
    if bits in (2, 4, 8):
        start = lo - first * (32 // bits)
        octets = np.ascontiguousarray(words).view(np.uint8)
        if bits == 8:
            values = octets[:, start : start + hi - lo].astype(np.float32)
            if less:
                values -= np.float32(less)
            return values
        values = np.take(_table(bits, less), octets, mode="clip")
        return values.view(np.float32).reshape(words.shape[0], -1)[:, start : start + hi - lo]
    at, shift, crosses = _places(lo, hi, bits, dense)
    at = at - first
    unsigned = words.view(np.uint32).astype(np.uint64)
    last = unsigned.shape[1] - 1
    codes = unsigned[:, at] >> shift
    if crosses:
        codes |= unsigned[:, np.minimum(at + 1, last)] << (np.uint64(32) - shift)
    found: Array = (codes & np.uint64((1 << bits) - 1)).astype(np.float32)
    found -= np.float32(less)
    return found


def unpack_rows(words: Array, lo: int, hi: int, bits: int, *, dense: bool = True) -> Array:
    """Return codes ``lo`` up to ``hi`` of each column, packed along the rows: ``[hi - lo, columns]``."""
    first, _ = word_range(lo, hi, bits, dense=dense)
    unsigned = words.view(np.uint32)
    if 32 % bits == 0:
        each, mask = 32 // bits, np.uint32((1 << bits) - 1)
        out = np.empty((unsigned.shape[0], each, unsigned.shape[1]), np.float32)
        scratch = np.empty_like(unsigned)
        for i in range(each):
            np.right_shift(unsigned, np.uint32(i * bits), out=scratch)
            scratch &= mask
            out[:, i, :] = scratch
        start = lo - first * each
        return out.reshape(-1, unsigned.shape[1])[start : start + hi - lo]
    return np.ascontiguousarray(unpack_columns(np.ascontiguousarray(words.T), lo, hi, bits, dense=dense).T)


def _places(lo: int, hi: int, bits: int, dense: bool) -> tuple[Array, Array, bool]:
    """Return the word and the bit each code begins at, and whether any may go on in the next."""
    index = np.arange(lo, hi)
    if dense:
        at, shift = index * bits // 32, (index * bits % 32).astype(np.uint64)
        return at, shift, bool((shift + np.uint64(bits) > 32).any())
    each = 32 // bits
    return index // each, (index % each * bits).astype(np.uint64), False


@cache
def _table(bits: int, less: int) -> Array:
    """Return the codes in each byte as one element: two of four bits, four of two."""
    octets = np.arange(256)
    codes = np.stack([octets >> at & ((1 << bits) - 1) for at in range(0, 8, bits)], axis=1) - less
    kind = np.uint64 if bits == 4 else np.complex128
    return np.ascontiguousarray(codes.astype(np.float32)).view(kind).reshape(-1)
