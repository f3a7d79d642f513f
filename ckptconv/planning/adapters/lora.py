"""Add LoRA adapters to their weights, or keep them alone as PEFT does; under Hugging Face names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import field, replace

from ckptconv.errors import PlanError
from ckptconv.planning.adapters.adapter import PREFIX, WITH_PEFT, AdapterConfig, config_file, saved_name
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.plan import AssetFile, Step
from ckptconv.records import dataclass
from ckptconv.relations import Box, Constant, Drop, LowRank, Pair, Relation, Scaled, Spec
from ckptconv.relations.terms import Term, Terms

__all__ = [
    "Prepared",
    "alone",
    "as_adapter",
    "follow",
    "low_rank",
    "refuse_tied",
    "renamed",
    "term_steps",
]

_LEFT_OUT = "base weights: --lora adapter writes the adapter alone"

# Linear layers of these names are Conv1D in GPT-2, [in, out], and nn.Linear elsewhere.
_CONV1D = (["c_attn"], ["c_proj"], ["c_fc"], ["q_attn"])


@dataclass(frozen=True, slots=True)
class Prepared:
    """Hold a checkpoint whose adapters are understood.

    Attributes:
        checkpoint: The checkpoint, its tensors under their names without PEFT's additions.
        terms: What is to be added to its weights; operands are among its tensors.
        config: adapter_config.json, where only the adapter is to be written.
    """

    checkpoint: Checkpoint
    terms: Terms = field(default_factory=dict)
    config: AssetFile | None = None


def low_rank(
    tensors: Mapping[str, Spec],
    adapters: Mapping[str, tuple[str, str, float]],
    embeddings: Iterable[str] = (),
    fan_in_fan_out: bool | None = None,
) -> dict[str, LowRank]:
    """Return the products of adapters, each turned the way its weight lies.

    Args:
        tensors: Shapes of weights and factors.
        adapters: Name of A ``[r, in]``, name of B ``[out, r]`` and scale, by the weight's name.
        embeddings: Weights that are embeddings; their adapters are always transposed.
        fan_in_fan_out: What the adapter's config says of square weights.

    Raises:
        PlanError: if a product does not fit its weight, or fits a square weight both ways.
    """
    turned = dict.fromkeys(embeddings, True)
    square = []
    for weight, (a, b, _) in adapters.items():
        if weight in turned:
            continue
        straight = (*tensors[b].shape[:1], *tensors[a].shape[1:])
        if straight == straight[::-1]:
            square.append(weight)
        else:
            turned[weight] = tensors[weight].shape == straight[::-1]
    # Output heads are never Conv1D, so they say nothing of the others.
    ways = {t for w, t in turned.items() if w not in embeddings and not w.endswith("lm_head.weight")}
    way = ways.pop() if len(ways) == 1 else fan_in_fan_out
    for weight in square:
        if way is None and weight.split(".")[-2:-1] in _CONV1D:
            raise PlanError(
                f"{weight} is square: it may be [out, in], or [in, out] as in GPT-2",
                hint="put the adapter_config.json of the training beside the checkpoint",
            )
        turned[weight] = bool(way)
    return {w: LowRank(a, b, scale, turned[w]) for w, (a, b, scale) in adapters.items()}


def as_adapter(
    checkpoint: Checkpoint,
    adapters: Mapping[str, LowRank],
    config: AdapterConfig | None = None,
    *,
    embeddings: Iterable[str] = (),
    others: Mapping[str, str] | None = None,
) -> Prepared:
    """Keep a checkpoint's adapters alone, under the names PEFT saves them with.

    Args:
        checkpoint: The checkpoint, with Hugging Face names.
        adapters: Its adapters by the name of the weight they belong to.
        config: The adapter_config.json that is there.
        embeddings: Weights that are embeddings.
        others: Names to save tensors under that were trained as a whole, without PEFT's prefix.
    """
    tables, kept = set(embeddings), others or {}
    names: dict[str, str | None] = dict.fromkeys(checkpoint.relation.right, None)
    names |= {old: PREFIX + new for old, new in kept.items()}
    for weight, term in adapters.items():
        for part, operand in (("A", term.a), ("B", term.b)):
            module = weight.removesuffix(".weight")
            names[operand] = saved_name(module, part, embedding=weight in tables)
    modules = [n.removesuffix(".weight") for n in names if n.endswith(".weight")]
    asset = config_file(
        adapters,
        checkpoint.relation.right,
        config,
        embeddings=tables,
        modules=modules,
        modules_to_save=sorted({n.rpartition(".")[0].rpartition(".")[2] for n in kept.values()}),
    )
    alone = replace(checkpoint, aliases={}, unresolved=())
    count = sum(n is None for n in names.values())
    note = Note("info", f"the adapter alone is written; {count} tensors of the base model are left out")
    alone = renamed(alone, names, reason=_LEFT_OUT)
    return Prepared(replace(alone, notes=(*alone.notes, note)), config=asset)


def alone(relation: Relation, terms: Mapping[str, tuple[LowRank, ...]]) -> tuple[Relation, AssetFile, Step]:
    """Keep factors alone, under the names PEFT saves them with.

    Args:
        relation: Stored tensors to weights and factors, under Hugging Face names.
        terms: One product for each weight that has one.

    Returns:
        The relation to the factors, their adapter_config.json, and a step that says what is left out.
    """
    products = {weight: added[0] for weight, added in terms.items()}
    names = {
        operand: saved_name(weight.removesuffix(".weight"), part, embedding=False)
        for weight, term in products.items()
        for part, operand in (("A", term.a), ("B", term.b))
    }
    right = {new: relation.right[old] for old, new in names.items()}
    pairs = [
        Pair(Box.whole(old, right[new].shape), Box.whole(new, right[new].shape)) for old, new in names.items()
    ]
    others = {n: s for n, s in relation.right.items() if n not in names}
    drops = [Drop(Box.whole(n, s.shape), _LEFT_OUT) for n, s in others.items() if s.numel]
    modules = [n.removesuffix(".weight") for n in {**others, **products} if n.endswith(".weight")]
    asset = config_file(products, relation.right, None, modules=modules)
    kept = relation.compose(Relation(dict(relation.right), right, tuple(pairs), tuple(drops)))
    return kept, asset, Step("drop", f"{len(others)} tensors of the base model", _LEFT_OUT)


def follow(terms: Terms, relation: Relation) -> dict[str, tuple[Term, ...]]:
    """Return terms under the names a relation gives the tensors they speak of.

    Raises:
        PlanError: if a tensor that something is added to changes more than its name, or goes without its
            operands.
    """
    if not terms:
        return {}
    pairs: dict[str, list[Pair]] = {}
    for pair in relation.pairs:
        pairs.setdefault(pair.left.tensor, []).append(pair)

    def new(name: str) -> str | None:
        if name not in relation.left:  # an adapter saved without its weight
            return name
        ends = {p.right.tensor for p in pairs.get(name, ())}
        if not ends and name not in relation.right:
            return None
        same = all(p.left.is_contiguous and p.left.offset == p.right.offset for p in pairs.get(name, ()))
        if len(ends) > 1 or not same:
            raise PlanError(
                f"{name} has a LoRA adapter, and is cut or turned when it is written", hint=WITH_PEFT
            )
        return next(iter(ends), name)

    moved = {}
    for weight, added in terms.items():
        names = {n: new(n) for term in added for n in term.operands}
        target = new(weight)
        gone = [n for n, m in names.items() if m is None]
        if target is None and len(gone) == len(names):
            continue
        if target is None or gone:
            what, left = (
                (weight, [n for n in names if n not in gone]) if target is None else (gone[0], [weight])
            )
            raise PlanError(
                f"{what} is dropped, but {', '.join(left)} is not",
                hint="drop a weight together with its adapter: --drop 'NAME*'",
            )
        moved[target] = tuple(_moved(term, {n: m for n, m in names.items() if m}) for term in added)
    return moved


def _moved(term: Term, names: Mapping[str, str]) -> Term:
    if isinstance(term, LowRank):
        return replace(term, a=names[term.a], b=names[term.b])
    return replace(term, tensor=names[term.tensor]) if isinstance(term, Scaled) else term


def refuse_tied(terms: Terms, aliases: Mapping[str, str]) -> None:
    """Refuse to add an adapter to one of two tied weights: the other would change with it.

    Raises:
        PlanError: if there is one.
    """
    for alias, kept in aliases.items():
        for name in (alias, kept):
            if any(not isinstance(t, Constant) for t in terms.get(name, ())):
                raise PlanError(
                    f"{name} has a LoRA adapter and is tied: {alias} shares the data of {kept}",
                    hint="write the adapter alone with --lora adapter, or untie the weights first",
                )


def term_steps(terms: Terms, tensors: Mapping[str, Spec]) -> list[Step]:
    """Say what is added to how many tensors."""
    found = Counter[tuple[str, str]]()
    for added in terms.values():
        for term in added:
            if isinstance(term, LowRank):
                product = "(B A)^T" if term.transposed else "B A"
                found["lora", f"+ {term.scale:g} {product} of rank {tensors[term.a].shape[0]}"] += 1
            elif isinstance(term, Scaled):
                found["lora", f"+ {term.scale:g} bias of B"] += 1
            elif isinstance(term, Constant):
                found["add", f"{term.value:+g}"] += 1
    why = "in float32, rounded once"
    return [
        Step("lora" if kind == "lora" else "add", f"{count} tensor{'' if count == 1 else 's'} {what}", why)
        for (kind, what), count in found.items()
    ]


def renamed(
    checkpoint: Checkpoint, names: Mapping[str, str | None], *, reason: str = "replaced by a trained copy"
) -> Checkpoint:
    """Return a checkpoint whose tensors have other names; those without one are left out.

    Args:
        checkpoint: The checkpoint.
        names: New name, or None, by old name; a name that is not there stays.
        reason: Why tensors are left out.

    Raises:
        PlanError: if two tensors would get one name.
    """
    names = dict(names)
    for alias, kept in checkpoint.aliases.items():  # the data stay if only their first name goes
        if names.get(kept, kept) is None and (new := names.get(alias, alias)) is not None:
            names[kept] = new
    right: dict[str, Spec] = {}
    pairs, drops = [], []
    for old, spec in checkpoint.relation.right.items():
        new = names.get(old, old)
        if new is None:
            if spec.numel:
                drops.append(Drop(Box.whole(old, spec.shape), reason))
            continue
        if new in right:
            raise PlanError(f"two tensors would be named {new}", where=checkpoint.data)
        right[new] = spec
        if spec.numel:
            pairs.append(Pair(Box.whole(old, spec.shape), Box.whole(new, spec.shape)))
    relation = Relation(dict(checkpoint.relation.right), right, tuple(pairs), tuple(drops))
    ends = {a: (names.get(a, a), names.get(b, b)) for a, b in checkpoint.aliases.items()}
    return replace(
        checkpoint,
        relation=checkpoint.relation.compose(relation),
        via={n: d for o, d in checkpoint.via.items() if (n := names.get(o, o)) is not None},
        aliases={a: b for a, b in ends.values() if a is not None and b is not None and a != b},
        buffers=frozenset(n for o in checkpoint.buffers if (n := names.get(o, o)) is not None),
        unresolved=tuple(n for o in checkpoint.unresolved if (n := names.get(o, o)) is not None),
    )
