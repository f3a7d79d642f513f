"""Say how one stored tensor packs several slots; read from either end it packs or unpacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ckptconv.errors import PlanError
from ckptconv.graph import Relation, Spec, packing
from ckptconv.slots.shapes import Dims

__all__ = ["Pack", "concat", "grouped", "interleaved", "leaves", "relate", "transposed"]


@dataclass(frozen=True, slots=True)
class Pack:
    """Combine slots, or packs of them, into one tensor along its first axis.

    Attributes:
        kind: ``grouped`` (in turns, group by group), ``interleaved`` (row by row) or ``transposed``.
        parts: What is combined, in order.
        groups: Name of the size that counts the groups, or a number.
    """

    kind: Literal["grouped", "interleaved", "transposed"]
    parts: tuple[str | Pack, ...]
    groups: str = "1"


def grouped(groups: str, *parts: str | Pack) -> Pack:
    """Cut each part into this many groups; group 0 of all comes first."""
    return Pack("grouped", parts, groups)


def concat(*parts: str | Pack) -> Pack:
    """Put the parts one after the other."""
    return Pack("grouped", parts)


def interleaved(*parts: str | Pack) -> Pack:
    """Take a row of each in turn."""
    return Pack("interleaved", parts)


def transposed(part: str | Pack) -> Pack:
    """Store the transpose."""
    return Pack("transposed", (part,))


def leaves(pack: str | Pack) -> Iterator[str]:
    """Yield the slots in a pack, in order."""
    if isinstance(pack, str):
        yield pack
    else:
        for part in pack.parts:
            yield from leaves(part)


def relate(packed: str, pack: Pack, specs: Mapping[str, Spec], dims: Dims) -> Relation:
    """Relate a stored tensor (left) to the slots it packs (right).

    Args:
        packed: Name of the stored tensor.
        pack: How it is made up; its leaves are keys of ``specs``.
        specs: Shape and dtype of each slot.
        dims: Sizes that count groups.

    Raises:
        PlanError: if the shapes do not fit.
    """
    inner: list[Relation] = []
    parts: dict[str, Spec] = {}
    for i, part in enumerate(pack.parts):
        if isinstance(part, str):
            parts[part] = specs[part]
        else:
            name = f"{packed}/{i}"
            made = relate(name, part, specs, dims)
            parts[name] = made.left[name]
            inner.append(made)
    if pack.kind == "transposed":
        ((name, spec),) = parts.items()
        outer = packing.transposed(packed, name, spec)
    elif pack.kind == "interleaved":
        outer = packing.interleaved(packed, parts)
    else:
        outer = packing.grouped(packed, parts, groups=_count(pack.groups, dims))
    if not inner:
        return outer
    plain = [packing.one(n, n, s) for n, s in parts.items() if not any(n in r.left for r in inner)]
    return outer.compose(Relation.union([*plain, *inner]))


def _count(groups: str, dims: Dims) -> int:
    if groups.isdigit():
        return int(groups)
    if groups not in dims:
        raise PlanError(
            f"the configuration does not say {groups!r}", hint="give a complete config.json with --config"
        )
    return dims[groups]
