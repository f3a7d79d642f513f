"""Carry what is added to a producer's tensors over to Hugging Face's: low-rank products, ones of norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ckptconv.errors import PlanError
from ckptconv.planning.adapters.adapter import WITH_PEFT
from ckptconv.relations import Constant, LowRank, Pair, Relation, Spec, packing, renamed
from ckptconv.relations.box import Box
from ckptconv.relations.terms import Terms, operands
from ckptconv.slots import Dims, Pack, Table, leaves, shape_of
from ckptconv.slots.pack import relate

__all__ = ["carried", "ones"]


def carried(
    terms: Terms, tensors: Mapping[str, Spec], source: Table, target: Table, dims: Dims
) -> tuple[Relation, dict[str, tuple[LowRank, ...]]]:
    """Turn products added to one table's weights into those added to another's.

    The rows of ``B`` are those of the weight: they split and join as its rows do. ``A`` is shared by all
    weights that the one it was trained for splits into.

    Args:
        terms: One product for each weight, by its name in ``source``.
        tensors: The tensors so far: those of ``target``, and the factors.
        source: The table that names the weights now.
        target: The table of the tensors to be written.
        dims: The sizes of the model.

    Returns:
        The tensors so far (left) to the same with factors for each weight of ``target`` (right), and the
        products by the names of those.

    Raises:
        PlanError: if a factor has a shape that its weight has not, or a weight of ``target`` joins rows of
            several adapters.
    """
    products = {
        weight: term for weight, added in terms.items() for term in added if isinstance(term, LowRank)
    }
    found, unknown = source.named(products)
    if unknown:
        raise PlanError(
            f"there is a LoRA adapter of {unknown[0]}, which is no weight of a model that is known",
            hint=WITH_PEFT,
        )
    owner: dict[str, str] = {}
    unpacked: list[Relation] = []
    for f in found:
        term, pack = products[f.name], f.fill()
        unpacked.append(_rows(term.b, pack, tensors[term.b], dims))
        inputs = {shape_of(s, dims)[1:] for s in leaves(pack)}
        if inputs != {tensors[term.a].shape[1:]}:
            raise PlanError(_wrong(term.a, tensors[term.a].shape, (tensors[term.a].shape[0], *inputs.pop())))
        owner |= dict.fromkeys(leaves(pack), f.name)
    here, left = target.holding(owner)
    if left:
        raise PlanError(
            f"{left[0]} has a LoRA adapter, but is stored together with weights that have none",
            hint=WITH_PEFT,
        )
    packed: list[Relation] = []
    shared: dict[str, list[str]] = {}
    right: dict[str, tuple[LowRank, ...]] = {}
    for f in here:
        owners = dict.fromkeys(owner[s] for s in f.slots)
        if len(owners) > 1 or f.entry.copy:
            why = "joins rows of several adapters" if len(owners) > 1 else "is a copy of a weight with one"
            raise PlanError(f"{f.name} {why}: {', '.join(owners)}", hint=WITH_PEFT)
        term, pack = products[next(iter(owners))], f.fill()
        turned = isinstance(pack, Pack) and pack.kind == "transposed"
        if isinstance(pack, Pack) and turned:
            pack = pack.parts[0]
        a, b = f"{f.name}.lora_A", f"{f.name}.lora_B"
        rank, dtype = tensors[term.b].shape[1], tensors[term.b].dtype
        rows = sum(shape_of(s, dims)[0] for s in leaves(pack))
        packed.append(_rows(b, pack, Spec((rows, rank), dtype), dims).invert())
        shared.setdefault(term.a, []).append(a)
        right[f.name] = (LowRank(a, b, term.scale, turned),)
    parts = operands(terms)
    same = [renamed(n, n, s) for n, s in tensors.items() if n not in parts]
    split = Relation.union(unpacked).compose(Relation.union(packed))
    copies = [_shared(name, names, tensors[name]) for name, names in shared.items()]
    return Relation.union([*same, split, *copies]), right


def _rows(name: str, pack: str | Pack, spec: Spec, dims: Dims) -> Relation:
    """Relate a factor ``[out, r]`` (left) to those of the slots its weight holds (right)."""
    if len(spec.shape) != 2:
        raise PlanError(f"{name} has shape {list(spec.shape)}, not [out, r]", hint=WITH_PEFT)
    rows = {s: Spec((shape_of(s, dims)[0], spec.shape[1]), spec.dtype) for s in leaves(pack)}
    if not isinstance(pack, str):
        made = relate(name, pack, rows, dims)
    elif pack == "head" and spec.shape[0] > rows[pack].shape[0]:
        made = packing.padded(name, pack, rows[pack], rows=spec.shape[0])
    else:
        made = packing.renamed(name, pack, rows[pack])
    if made.left[name].shape != spec.shape:
        raise PlanError(_wrong(name, spec.shape, made.left[name].shape))
    return made


def _wrong(name: str, found: tuple[int, ...], asked: tuple[int, ...]) -> str:
    return f"{name} is {list(found)}, its weight asks for {list(asked)}"


def _shared(name: str, copies: list[str], spec: Spec) -> Relation:
    """Provide one tensor under several names."""
    pairs = tuple(
        Pair(Box.whole(name, spec.shape), Box.whole(copy, spec.shape), right_copy=i > 0)
        for i, copy in enumerate(copies)
    )
    return Relation({name: spec}, dict.fromkeys(copies, spec), pairs)


def ones(relation: Relation, shift: Callable[[str], int]) -> dict[str, tuple[Constant, ...]]:
    """Add a value to the weights of norms: a relation's right tensors whose left one is such a slot.

    Zero-centred norms multiply by ``1 + weight`` (megatron-core 0.16.1, ``layernorm_zero_centered_gamma``).

    Args:
        relation: Slots (left) to tensors.
        shift: What is to be added to a norm, by its slot.
    """
    norms = [p for p in relation.pairs if _is_norm(p.left.tensor)]
    return {p.right.tensor: (Constant(float(value)),) for p in norms if (value := shift(p.left.tensor))}


def _is_norm(slot: str) -> bool:
    return slot.endswith("norm") and "/" not in slot
