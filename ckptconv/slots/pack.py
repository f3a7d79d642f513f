"""Say how one stored tensor packs several slots; read from either end it packs or unpacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from ckptconv.errors import PlanError
from ckptconv.records import dataclass
from ckptconv.relations import Relation, Spec, packing
from ckptconv.slots.shapes import Dims

__all__ = [
    "Pack",
    "columns",
    "concat",
    "every_expert",
    "grouped",
    "interleaved",
    "leaves",
    "over_leaves",
    "paired",
    "relate",
    "rotary",
    "rows",
    "stacked",
    "swapped",
    "transposed",
]


@dataclass(frozen=True, slots=True)
class Pack:
    """Combine slots, or packs of them, into one tensor.

    Attributes:
        kind: Along the first axis ``grouped`` (in turns, group by group) or ``interleaved`` (row by row);
            ``stacked`` along a new one; or one part in another form: ``transposed``, ``rotary`` (the rows of
            each head, pairs in the part and halves in the tensor), ``paired`` (the other way round), ``rows``
            and ``columns`` (a tensor ``[n, a, b]`` as ``[n*a, b]`` and as ``[a, n*b]``, the same elements in
            the same order), or ``swapped`` (the two halves of the columns exchanged).
        parts: What is combined, in order. In a ``stacked`` one, slots with ``{e}`` stand for all experts; one
            slot without gets a leading axis of one.
        groups: Name of the size that counts the groups, or the heads; or a number.
    """

    kind: Literal[
        "grouped", "interleaved", "transposed", "stacked", "rotary", "paired", "rows", "columns", "swapped"
    ]
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


def stacked(part: str | Pack) -> Pack:
    """Put the part of every expert along a new leading axis."""
    return Pack("stacked", (part,))


def rotary(heads: str, part: str | Pack) -> Pack:
    """Store the rows of each head as two halves: the even ones of the part, then the odd ones."""
    return Pack("rotary", (part,), heads)


def paired(heads: str, part: str | Pack) -> Pack:
    """Store the rows of each head as pairs: one of the part's first half, one of its second, in turns."""
    return Pack("paired", (part,), heads)


def rows(part: Pack) -> Pack:
    """Store ``[n, a, b]`` as ``[n*a, b]``."""
    return Pack("rows", (part,))


def columns(part: Pack) -> Pack:
    """Declare ``[n, a, b]`` as ``[a, n*b]``, without moving an element."""
    return Pack("columns", (part,))


def swapped(part: str | Pack) -> Pack:
    """Store the second half of the columns before the first."""
    return Pack("swapped", (part,))


def over_leaves(pack: str | Pack, change: Callable[[str], str]) -> str | Pack:
    """Return the same pack of other slots."""
    if isinstance(pack, str):
        return change(pack)
    return replace(pack, parts=tuple([over_leaves(p, change) for p in pack.parts]))


def every_expert(pack: str | Pack, dims: Dims) -> str | Pack:
    """Return a pack with the parts of all experts in place of the one that stands for them."""
    if isinstance(pack, str):
        return pack
    parts = tuple([every_expert(p, dims) for p in pack.parts])
    if pack.kind == "stacked" and len(parts) == 1 and any("{e}" in slot for slot in leaves(parts[0])):
        (part,) = parts

        def numbered(expert: int) -> str | Pack:
            return over_leaves(part, lambda slot: slot.replace("{e}", str(expert)))

        parts = tuple([numbered(e) for e in range(_count("experts", dims))])
    return replace(pack, parts=parts)


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
        outer = packing.permuted(packed, name, spec)
    elif pack.kind == "interleaved":
        outer = packing.row_by_row(packed, parts)
    elif pack.kind == "stacked":
        outer = packing.piled(packed, parts)
    elif pack.kind in ("rows", "columns"):
        ((name, spec),) = parts.items()
        n, a, b = spec.shape
        outer = packing.renamed(packed, name, spec, shape=(n * a, b) if pack.kind == "rows" else (a, n * b))
    elif pack.kind == "swapped":
        ((name, spec),) = parts.items()
        outer = packing.swapped(packed, name, spec)
    elif pack.kind == "rotary":
        ((name, spec),) = parts.items()
        outer = packing.halved(name, packed, spec, heads=_count(pack.groups, dims)).invert()
    elif pack.kind == "paired":
        ((name, spec),) = parts.items()
        outer = packing.halved(packed, name, spec, heads=_count(pack.groups, dims))
    else:
        outer = packing.in_turns(packed, parts, groups=_count(pack.groups, dims))
    if not inner:
        return outer
    plain = [packing.renamed(n, n, s) for n, s in parts.items() if not any(n in r.left for r in inner)]
    return outer.compose(Relation.union([*plain, *inner]))


def _count(groups: str, dims: Dims) -> int:
    if groups.isdigit():
        return int(groups)
    if groups not in dims:
        raise PlanError(
            f"the configuration does not say {groups!r}", hint="give a complete config.json with --config"
        )
    return dims[groups]
