"""Refuse a loaded value that a walker would not get to the end of.

A pickle of a few hundred bytes can make a dict that holds itself, or forty lists that each hold the one
before twice, which unfold to 2**40. Whoever walks, prints or compares what a file holds goes through it as a
tree, so that it is one, of about the size of the file, is checked here for all of them.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any, Final

from ckptconv.containers.torch.picklevm import Record
from ckptconv.errors import FormatError

__all__ = ["check_nesting"]

_MAX_LEVELS: Final = 200
_SMALL: Final = 1_000_000
_MAX_GROWTH: Final = 8
_MAPPINGS: Final = frozenset({dict, OrderedDict, defaultdict})
_CONTAINERS: Final = _MAPPINGS | {list, tuple, set, frozenset}


def check_nesting(root: object) -> None:
    """Go once through all containers of a value; those inside a record are taken by themselves.

    Raises:
        FormatError: if one holds itself, is nested more than 200 levels deep, or unfolds to more than a
            million elements and eight times what is really there.
    """
    roots = [root]
    records: set[int] = set()
    sizes: dict[int, int] = {}  # elements a container unfolds to, by its id
    seen = 0
    while roots:
        top = roots.pop()
        if type(top) is Record:
            if id(top) not in records:
                records.add(id(top))
                roots += (top.args, top.kwargs, top.state, top.items, top.entries)
        elif type(top) in _CONTAINERS and id(top) not in sizes:
            seen += _walk(top, sizes, roots, seen)


def _children(value: Any) -> Iterator[object]:
    return iter(value.values() if type(value) in _MAPPINGS else value)


def _walk(top: object, sizes: dict[int, int], roots: list[object], before: int) -> int:
    """Go through one container, add its records to ``roots``, and return how many elements are new."""
    path = [(id(top), _children(top))]
    counts = [1]
    opened = {id(top)}
    seen = 0
    while path:
        for value in path[-1][1]:
            seen += 1
            kind = type(value)
            if kind in _CONTAINERS:
                known = sizes.get(id(value))
                if known is None:
                    if id(value) in opened:
                        raise FormatError("a container that holds itself")
                    if len(path) >= _MAX_LEVELS:
                        raise FormatError(f"containers nested more than {_MAX_LEVELS} levels deep")
                    opened.add(id(value))
                    path.append((id(value), _children(value)))
                    counts.append(1)
                    break
                counts[-1] += known
            else:
                counts[-1] += 1
                if kind is Record:
                    roots.append(value)
        else:
            ended, _ = path.pop()
            opened.discard(ended)
            sizes[ended] = count = counts.pop()
            if count > _SMALL + _MAX_GROWTH * (before + seen):
                raise FormatError(f"containers that hold one another so often that they unfold to {count:,}")
            if counts:
                counts[-1] += count
    return seen
