"""Take what all records and chunks of a ``.metadata`` say at once, where they are alike.

There are hundreds of thousands, and nearly always all have the same fields. Each function returns None where
that is not so, or something is not as it must be: whoever goes through them one by one says what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, compress, islice, repeat
from typing import Any, Final, NamedTuple

import numpy as np

from ckptconv.containers.dcp.fields import columns_of, halves_of
from ckptconv.containers.torch.quick import Thing
from ckptconv.places.inside import is_inside

__all__ = ["MAX_DIMS", "MAX_SIZE", "Chunk", "Entry", "Key", "Sizes", "chunks_alike", "entries_alike"]

MAX_DIMS: Final = 64
MAX_SIZE: Final = 1 << 62

# The fields of each kind of object, and whether it may lack them.
_INDEX: Final = {"fqn": False, "offset": True}
_PLACE: Final = {"relative_path": False, "offset": False, "length": False, "transform_descriptors": True}
_CHUNK: Final = {"offsets": False, "sizes": False}

Sizes = tuple[int, ...]
Key = tuple[str, Sizes | None]
"""Name of a tensor and offset of its chunk; None for an object."""


class Entry(NamedTuple):
    """Locate a record: its file, relative to the folder, and its bytes."""

    file: str
    offset: int
    length: int


class Chunk(NamedTuple):
    """A box of a tensor that is stored as one record: ``offsets`` and ``sizes`` along each axis.

    ``entry`` is None where the box has no elements (a rank for which no row was left).
    """

    offsets: Sizes
    sizes: Sizes
    entry: Entry | None


# In C: there are hundreds of thousands.
_entry: Callable[[Iterable[Any]], Entry] = partial(tuple.__new__, Entry)
_chunk: Callable[[Iterable[Any]], Chunk] = partial(tuple.__new__, Chunk)


def entries_alike(stored: object) -> dict[Key, Entry] | None:
    """Return the records by name and offset of the chunk, from ``storage_data``."""
    halves = halves_of(stored)
    if halves is None:
        return None
    found: dict[Key, Entry] = {}
    one: dict[str, str] = {}  # one string for each file, however many records it has
    for indices, infos in _by_width(*halves):  # those of objects have no offset
        index, info = columns_of(indices, _INDEX), columns_of(infos, _PLACE)
        if index is None or info is None or any(info["transform_descriptors"]):
            return None
        names, offsets = index["fqn"], index["offset"]
        files, begins, lengths = info["relative_path"], info["offset"], info["length"]
        if not (_are(names, str) and _are(files, str) and _are_counts(begins) and _are_counts(lengths)):
            return None
        if not _are_sizes([at for at in offsets if at is not None]):
            return None
        for file in set(files) - one.keys():
            if not is_inside(file):
                return None
            one[file] = file
        places = zip(map(one.__getitem__, files), begins, lengths, strict=True)
        found.update(zip(zip(names, offsets, strict=True), map(_entry, places), strict=True))
    return found if len(found) == len(halves[0]) else None


def _by_width(keys: list[Any], values: list[Any]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield the items of a dict together whose keys have as many fields."""
    things = all(issubclass(kind, Thing) for kind in set(map(type, keys))) and set(map(len, keys)) == {1}
    widths = list(map(len, chain.from_iterable(keys))) if things else [0] * len(keys)
    for width in set(widths):
        chosen = [w == width for w in widths]
        yield list(compress(keys, chosen)), list(compress(values, chosen))


def chunks_alike(
    tensors: Sequence[tuple[str, Sizes, list[Any]]], entries: dict[Key, Entry]
) -> Iterator[tuple[Chunk, ...]] | None:
    """Return the chunks of each tensor.

    Args:
        tensors: Name, shape and chunks of each.
        entries: The records.
    """
    counts = [len(chunks) for _, _, chunks in tensors]
    columns = columns_of(list(chain.from_iterable([chunks for _, _, chunks in tensors])), _CHUNK)
    if columns is None:
        return None
    offsets, sizes = columns["offsets"], columns["sizes"]
    shapes = list(chain.from_iterable([repeat(shape, len(chunks)) for _, shape, chunks in tensors]))
    names = chain.from_iterable([repeat(name, len(chunks)) for name, _, chunks in tensors])
    if not _are_sizes(offsets) or not _are_sizes(sizes):
        return None
    if not list(map(len, offsets)) == list(map(len, sizes)) == list(map(len, shapes)):
        return None
    along = _flat(sizes)
    if (_flat(offsets) + along > _flat(shapes)).any():
        return None
    found: Iterable[Entry | None] = map(entries.get, zip(names, offsets, strict=True))
    if not along.all():
        found = [None if 0 in size else entry for entry, size in zip(found, sizes, strict=True)]
        missing = any(entry is None and 0 not in size for entry, size in zip(found, sizes, strict=True))
    else:
        found = list(found)
        missing = None in found
    if missing:
        return None
    every = map(_chunk, zip(offsets, sizes, found, strict=True))
    return (tuple(islice(every, count)) for count in counts)


def _are(values: Iterable[object], kind: type) -> bool:
    return set(map(type, values)) <= {kind}


def _are_counts(values: Sequence[Any]) -> bool:
    return _are(values, int) and (not values or (min(values) >= 0 and max(values) < MAX_SIZE))


def _are_sizes(values: Sequence[Any]) -> bool:
    """Whether all are shapes or offsets; none is hashed before: tuples may be deep."""
    if not _are(values, tuple) or any(count > MAX_DIMS for count in set(map(len, values))):
        return False
    return _are_counts(list(chain.from_iterable(values)))


def _flat(values: Iterable[Sizes]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.fromiter(chain.from_iterable(values), np.int64)
