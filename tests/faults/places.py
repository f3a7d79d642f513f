"""Say where in files values lie, flip a bit there, and prove of a flip that it changes nothing."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ckptconv.containers.stored import Stored
from ckptconv.dtypes import numpy_dtype
from ckptconv.numbers.casts import cast_chain
from ckptconv.plans.plan import Plan
from ckptconv.relations import Relation, restrict
from ckptconv.relations.terms import operands

__all__ = ["Ranges", "excuse", "flipped", "payload", "spans_of"]

Ranges = list[tuple[int, int]]


def spans_of(stored: Mapping[str, Stored]) -> dict[str, Ranges]:
    found: dict[str, Ranges] = {}
    for s in stored.values():
        for path, offset, count in s.spans(0, s.numel):
            found.setdefault(path, []).append((offset, offset + count))
    return found


def payload(paths: Iterable[str], spans: Mapping[str, Ranges]) -> dict[str, Ranges]:
    """Return where in each file values lie: all storages of a torch file, of others what the reader knows."""
    found = {}
    for path in paths:
        ranges = _storages(path) if zipfile.is_zipfile(path) and not path.endswith(".distcp") else []
        if ranges := ranges or spans.get(path, []):
            found[path] = ranges
    return found


def _storages(path: str) -> Ranges:
    found = []
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():
            if "/data/" in entry.filename and entry.file_size:
                file.seek(entry.header_offset + 26)
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                start = entry.header_offset + 30 + name + extra
                found.append((start, start + entry.file_size))
    return found


@contextmanager
def flipped(path: Path, at: int, bit: int) -> Iterator[None]:
    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))

    flip()
    try:
        yield
    finally:
        flip()


def excuse(
    made: Plan,
    stored: Mapping[str, Stored],
    relation: Relation,
    path: str,
    at: int,
    bit: int,
    *,
    at_source: bool,
    again: bool,
) -> str:
    """Prove that a flip changes nothing: no pair holds its element, or a cast gives the same value.

    Of a sum that is rounded, converting the damaged source ``again`` to the same bytes proves it.
    """
    backwards: dict[str, list[Any]] = {}
    for pair in relation.pairs:
        backwards.setdefault(pair.left.tensor, []).append(pair.invert())
    held = []
    for key, s in stored.items():
        ends = [*(e.start for e in s.extents[1:]), s.numel]
        for e, end in zip(s.extents, ends, strict=True):
            if e.path == path and e.offset <= at < e.offset + (end - e.start) * s.dtype.itemsize:
                index = e.start + (at - e.offset) // s.dtype.itemsize
                byte = (at - e.offset) % s.dtype.itemsize
                reached = {
                    p.left.tensor for pair in backwards.get(key, ()) for p in restrict(pair, index, index + 1)
                }
                held += [(name, s, index, byte) for name in reached]
    if not held:
        return "unread"
    if not at_source:
        return "not found"
    added = set(made.terms) | set(operands(made.terms))
    if any(name in added for name, *_ in held):
        return "rounded" if again else "not found"
    same = (_same_cast(made, name, s, index, byte, bit) for name, s, index, byte in held)
    return "rounded" if all(same) else "not found"


def _same_cast(made: Plan, name: str, stored: Stored, index: int, byte: int, bit: int) -> bool:
    chain = made.casts.get(name)
    if chain is None or chain[0] != stored.dtype:
        return False
    path, offset, count = next(stored.spans(index, index + 1))
    with open(path, "rb") as file:
        file.seek(offset)
        raw = bytearray(file.read(count))
    results = []
    for _ in range(2):
        out = np.empty(1, numpy_dtype(chain[-1]))
        cast_chain(np.frombuffer(bytes(raw), numpy_dtype(chain[0])), chain, out)
        results.append(out.tobytes())
        raw[byte] ^= 1 << bit
    return results[0] == results[1]
