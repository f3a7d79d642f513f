"""Recognise names of other libraries on whatever container holds them: a dialect gives them their meaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ckptconv.dialects import DIALECTS, Dialect
from ckptconv.dialects.factors import factor_of, weight_of_factor, with_implied
from ckptconv.facts.value import Fact
from ckptconv.plans.checkpoint import Checkpoint, Note, beside_of
from ckptconv.relations import Spec
from ckptconv.relations.rename import under_names
from ckptconv.relations.terms import operands
from ckptconv.slots import Table
from ckptconv.slots.entry import form, numbers
from ckptconv.slots.translate import without

__all__ = ["spoken"]


def spoken(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose names a dialect understands, with what its own configuration says.

    Names of Hugging Face's, and those no dialect knows, stay as they are.
    """
    if checkpoint.table is not None or checkpoint.settle is not None:
        return checkpoint
    parts = operands(checkpoint.terms)
    names = _samples(n for n in checkpoint.relation.right if n not in parts)
    best = max(_voices(), key=lambda d: _known(d, names), default=None)
    if best is None or not _is_meant(best, names):
        return checkpoint
    checkpoint = _renamed(checkpoint, best)
    parts = operands(checkpoint.terms)
    buffers = [n for n in checkpoint.tensors if best.is_ignored(n)]
    relation = without(checkpoint.relation, buffers, "buffers the model makes itself")
    facts = best.facts(beside_of(checkpoint)) if best.facts is not None else {}
    words = best.usual(with_implied(relation.right))
    said = [w for w, fact in facts.items() if w in best.reads and fact.value is True]
    table = best.table(words.beside(said))
    if facts:
        facts = {**_from_shapes(table, relation.right), **facts}
    return replace(
        checkpoint,
        relation=relation,
        table=table,
        words=words,
        facts={n: f for n, f in facts.items() if n not in best.reads},
        strange=tuple([n for n in table.named(relation.right)[1] if n not in parts and not factor_of(n)]),
        format=f"{checkpoint.format}, {best.library}'s names",
        notes=(*checkpoint.notes, Note("info", f"the names are those of {best.library}")),
    )


# What a slot's shape says, where the library's files do not.
_SHAPES = {
    "embed": (("vocab", 0), ("hidden", 1)),
    "layers.*.mlp.up": (("inner", 0),),
    "layers.*.mlp.down": (("inner", 1),),
    "layers.*.moe.router": (("experts", 0),),
}


def _from_shapes(table: Table, tensors: Mapping[str, Spec]) -> dict[str, Fact]:
    """Return the sizes that tensors of one slot each show."""
    facts: dict[str, Fact] = {}
    for found in table.named(tensors)[0]:
        pack = found.entry.pack
        for name, axis in _SHAPES.get(pack, ()) if isinstance(pack, str) else ():
            facts.setdefault(name, Fact(tensors[found.name].shape[axis], f"the shape of {found.name}"))
    return facts


def _voices() -> list[Dialect]:
    """Return the dialects that are spoken on any container."""
    return [d for d in DIALECTS if d.library]


def _samples(names: Iterable[str]) -> dict[str, int]:
    """Return a name of each form, and how many have it: layers and experts are named alike."""
    first: dict[str, str] = {}
    found: dict[str, int] = {}
    for name in names:
        one = first.setdefault(numbers(name)[0], name)
        found[one] = found.get(one, 0) + 1
    return found


def _known(dialect: Dialect, names: Mapping[str, int]) -> int:
    forms = {form(line.name) for line in dialect.lines}
    return sum(count for n, count in names.items() if _form(dialect, n)[0] in forms)


def _form(dialect: Dialect, name: str) -> tuple[str, tuple[int, ...]]:
    """Return a name as lines have it, and the numbers in it; a factor's is that of its weight."""
    bare = dialect.bare(name)
    return numbers(weight_of_factor(bare) or bare)


def _is_meant(dialect: Dialect, names: Mapping[str, int]) -> bool:
    """Whether a dialect knows layers, all that is in them, and nearly all names.

    InternLM2's names at Hugging Face are Meta's but for one in each layer.
    """
    kept = {n: count for n, count in names.items() if not dialect.is_ignored(dialect.bare(n))}
    forms = {form(line.name) for line in dialect.lines}
    layered = [where for n in kept for where, counts in [_form(dialect, n)] if counts]
    return (
        bool(layered) and forms.issuperset(layered) and 10 * _known(dialect, kept) >= 9 * sum(kept.values())
    )


def _renamed(checkpoint: Checkpoint, dialect: Dialect) -> Checkpoint:
    """Give tensors the names a dialect's lines have."""
    right, parts = checkpoint.relation.right, operands(checkpoint.terms)
    names = {n: n if n in parts else dialect.bare(n) for n in right}
    if all(old == new for old, new in names.items()):
        return checkpoint
    return replace(
        checkpoint,
        relation=checkpoint.relation.compose(under_names(right, names)),
        via={names.get(n, n): d for n, d in checkpoint.via.items()},
        terms={names.get(n, n): added for n, added in checkpoint.terms.items()},
        aliases={a: names.get(b, b) for a, b in checkpoint.aliases.items()},
    )
