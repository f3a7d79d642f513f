"""Join what the ranks of a model hold into whole tensors, numbered through the model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ckptconv.dialects.base import Dialect, Line, Traits, for_reading, traits_of
from ckptconv.dialects.factors import factor_cut, factor_of, is_gate_told, unpack_factor, with_implied
from ckptconv.dialects.stacked import turned
from ckptconv.errors import PlanError
from ckptconv.parallel import Chunk, Cut, Grid, Rank, Shard, merge_shards, number_layers
from ckptconv.relations import Box, Pair, Relation, Spec
from ckptconv.slots import Pack, Table
from ckptconv.slots.entry import fill_in, form, numbers

__all__ = ["Assembled", "Held", "assemble", "old_versions"]

# What one rank holds: for each virtual chunk its tensors by name.
Held = Mapping[Rank, Mapping[int, Mapping[str, Spec]]]
Key = Callable[[Rank, int, str], str]


@dataclass(frozen=True, slots=True)
class Assembled:
    """Hold what the ranks make up together.

    Attributes:
        relation: The ranks' tensors to whole tensors, under the names of the dialect with layers and experts
            numbered through the model.
        table: Where those names are looked up.
        traits: What the model is like: words of `Line.when`.
        stages: For every chunk its layers, local number to number in the model.
        unknown: Whole tensors the dialect has no name for; taken for replicas.
    """

    relation: Relation
    table: Table
    traits: Traits
    stages: Mapping[Chunk, Mapping[int, int]]
    unknown: tuple[str, ...]


def old_versions(lines: Iterable[Line], version: float) -> tuple[Line, ...]:
    """Change how query, key and value are packed to what checkpoints before version 2.0 hold.

    Rows of a rank are ``[3, heads, head_dim]`` in version 0 and ``[heads, head_dim, 3]`` in 1.0 (Megatron-LM
    core_v0.16.1, ``megatron/training/checkpointing.py``, ``fix_query_key_value_ordering``).
    """
    if version >= 2:
        return tuple(lines)

    def old(line: Line) -> Line:
        if not (isinstance(line.pack, Pack) and line.pack.groups == "kv_heads"):
            return line
        if version < 1:
            return replace(line, pack=Pack("grouped", line.pack.parts), cut=Cut(0, 3))
        return replace(line, pack=Pack("interleaved", line.pack.parts))

    return tuple(old(line) for line in lines)


def _traits(tensors: Mapping[str, Spec]) -> Traits:
    known = with_implied(tensors)
    if len(known) > len(tensors) and not is_gate_told(known):
        raise PlanError(
            "the adapter alone does not tell whether the MLP has a gate",
            hint="give the checkpoint it was trained on as the source, and this one with --adapter",
        )
    return traits_of(known)


def _holds(traits: Traits) -> Callable[[str, str], bool]:
    return lambda word, layer: word in traits


_LEGACY_EXPERTS = re.compile(r"(.*\.mlp\.)experts\.weight([12])")


def assemble(
    grid: Grid, held: Held, dialect: Dialect, key: Key, *, version: float = 3.0, traits: Traits | None = None
) -> Assembled:
    """Join the tensors of all ranks.

    Args:
        grid: The ranks.
        held: What each holds; all ranks of the grid are there.
        dialect: How it is named and cut.
        key: Name of the left side for a rank's tensor.
        version: The checkpoint's ``checkpoint_version``.
        traits: What the model is like, if its names are not to tell.

    Raises:
        PlanError: if ranks disagree about what there is, or slices do not fit together.
    """
    every: dict[str, Spec] = {}
    for tensors in _distinct(held).values():
        every.update(tensors)
    traits = traits if traits is not None else _traits(every)
    lines = old_versions(for_reading(dialect), version)
    table = Table(lines, holds=_holds(traits))
    index: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.holds(traits):
            index[form(line.name)].append(line)
    _same_names(grid, held)
    local: dict[Chunk, set[int]] = defaultdict(set)
    numbered: set[tuple[Chunk, int]] = set()
    for rank, chunks in held.items():
        for v, tensors in chunks.items():
            chunk = Chunk(rank.pp, v)
            if (chunk, id(tensors)) in numbered:
                continue
            numbered.add((chunk, id(tensors)))
            for name in tensors:
                if (at := _layer(name)) is not None:
                    local[chunk].add(at[1])
    stages = number_layers(grid, local)

    shards: dict[str, list[Shard]] = defaultdict(list)
    cuts: dict[str, tuple[Cut, int]] = {}
    unpacked: list[Relation] = []
    strange: dict[str, list[Shard]] = defaultdict(list)
    # Ranks that share a mapping, as those of one stage do, differ in numbers of slices and experts alone.
    known_parts: dict[tuple[Chunk, int, int], list[tuple[str, Spec, str, bool]]] = {}
    for rank, chunks in held.items():
        block, slice_of_expert = grid.experts(rank)
        for v, tensors in chunks.items():
            form_of = (Chunk(rank.pp, v), id(tensors), block)
            if (parts := known_parts.get(form_of)) is not None:
                for name, spec, whole, expert in parts:
                    cut = cuts[whole][0]
                    at_slice = slice_of_expert if expert else rank.tp
                    shards[whole].append(
                        Shard(key(rank, v, name), spec, at_slice if cut.axis is not None else 0)
                    )
                continue
            parts, before = [], (len(unpacked), len(strange))
            layers = stages.get(Chunk(rank.pp, v), {})
            plain: dict[str, tuple[str, Spec]] = {}
            for name, spec in tensors.items():
                if (match := _LEGACY_EXPERTS.fullmatch(name)) is not None:
                    made = _one_by_one(grid, key(rank, v, name), match, spec, tensors)
                    unpacked.append(made)
                    plain.update({n.rpartition(":")[2]: (n, s) for n, s in made.right.items()})
                elif (split := unpack_factor(key(rank, v, name), name, tensors)) is not None:
                    unpacked.append(split)
                    plain.update({n.rpartition(":")[2]: (n, s) for n, s in split.right.items()})
                else:
                    plain[name] = (key(rank, v, name), spec)
            weights = with_implied({n: s for n, (_, s) in plain.items()})
            count = _experts(weights)
            for name, (where, spec) in plain.items():
                factor = factor_of(name)
                weight = name if factor is None else factor.weight
                shape, values = numbers(weight)
                known = index.get(shape)
                if not known:
                    strange[_renumbered(name, layers)].append(Shard(where, spec))
                    continue
                line = known[0]
                if "*" in line.name and not line.slots[0].startswith("mtp."):
                    values = (layers[values[0]], *values[1:])
                if expert := "{e}" in line.name:
                    slice_ = slice_of_expert
                    values = (*values[:-1], block * count + values[-1])
                    size = grid.etp
                else:
                    slice_, size = rank.tp, grid.tp
                cut = _cut(line, weights.get(weight, spec), weight, weights)
                whole = fill_in(line.name, values)
                if factor is not None:
                    cut, whole = factor_cut(cut, factor.part), factor.name(whole)
                cuts[whole] = (cut, size)
                shards[whole].append(Shard(where, spec, slice_ if cut.axis is not None else 0))
                parts.append((name, spec, whole, expert))
            if (len(unpacked), len(strange)) == before and not strange:
                known_parts[form_of] = parts
    joined = [merge_shards(name, found, *cuts[name]) for name, found in shards.items()]
    unknown: list[str] = []
    for name, found in strange.items():
        if len({s.spec for s in found}) == 1:
            unknown.append(name)
            joined.append(merge_shards(name, found, Cut(), 1))
        else:  # slices of something: no one knows how they fit, so each has a name of its own
            unknown += [f"{name} of {s.key}" for s in found]
            joined += [merge_shards(f"{name} of {s.key}", [s], Cut(), 1) for s in found]
    relation = Relation.union(joined)
    if unpacked:
        first = Relation.union(unpacked)
        rest = {n: s for n, s in relation.left.items() if n not in first.right}
        same = tuple([Pair(Box.whole(n, s.shape), Box.whole(n, s.shape)) for n, s in rest.items()])
        relation = Relation.union([first, Relation(rest, rest, same)]).compose(relation)
    return Assembled(relation, table, traits, stages, tuple(unknown))


def _distinct(held: Held) -> dict[int, Mapping[str, Spec]]:
    """Return the mappings of tensors in it, those that several ranks share once."""
    return {id(tensors): tensors for chunks in held.values() for tensors in chunks.values()}


def _same_names(grid: Grid, held: Held) -> None:
    """Refuse ranks of one stage that hold different tensors, their experts' numbers aside."""
    seen: dict[Chunk, tuple[Rank, set[str]]] = {}
    compared: set[tuple[Chunk, int]] = set()
    for rank, chunks in held.items():
        for v, tensors in chunks.items():
            if (Chunk(rank.pp, v), id(tensors)) in compared:
                continue
            compared.add((Chunk(rank.pp, v), id(tensors)))
            names = set(tensors)
            first, wanted = seen.setdefault(Chunk(rank.pp, v), (rank, names))
            if names != wanted:
                name = min(names ^ wanted)
                has, lacks = (rank, first) if name in names else (first, rank)
                raise PlanError(
                    f"{name} is in {grid.folder(has)} but not in {grid.folder(lacks)}",
                    hint="ranks of one pipeline stage hold the same tensors; copy the checkpoint again",
                )


_LAYER = re.compile(r"((?:^|.*\.)layers\.)(\d+)(\..*)")


def _layer(name: str) -> tuple[str, int, str] | None:
    """Split a name at the number of its layer; layers for multi-token prediction do not count."""
    if name.startswith("mtp.") or (match := _LAYER.fullmatch(name)) is None:
        return None
    return match[1], int(match[2]), match[3]


def _renumbered(name: str, layers: Mapping[int, int]) -> str:
    at = _layer(name)
    return name if at is None else f"{at[0]}{layers[at[1]]}{at[2]}"


def _experts(tensors: Iterable[str]) -> int:
    """Return how many experts of each layer a rank holds."""
    found = [values[-1] for n in tensors if ".experts." in n for _, values in [numbers(n)] if len(values) > 1]
    return max(found, default=-1) + 1


def _cut(line: Line, spec: Spec, name: str, tensors: Mapping[str, Spec]) -> Cut:
    """Return how a tensor is cut; a compressed projection may be whole or not, as its sibling tells."""
    if line.tells is None:
        return line.cut
    stem = name.partition(".self_attention.")[0]
    sibling = tensors.get(f"{stem}.{line.tells}.weight")
    if sibling is None or spec.shape[0] >= sibling.shape[1]:
        return Cut()
    return line.cut


def _one_by_one(
    grid: Grid, where: str, match: re.Match[str], spec: Spec, tensors: Mapping[str, Spec]
) -> Relation:
    """Relate the experts of a rank in one tensor to experts one by one.

    Its memory is ``[experts, in, out]``, each expert the transpose of a linear layer's weight (core 0.16.1,
    ``megatron/core/transformer/moe/experts.py``, ``GroupedMLP``).
    """
    stem, which = match[1], match[2]
    router = tensors.get(f"{stem}router.weight")
    if router is None or router.shape[0] % grid.blocks or spec.numel == 0:
        raise PlanError(
            f"{match[0]} holds experts in one tensor, but the router that says how many is not beside it"
            if router is None
            else f"{router.shape[0]} experts cannot be divided over {grid.blocks} ranks",
            hint="correct the expert parallel size",
        )
    count = router.shape[0] // grid.blocks
    fixed = spec.shape[0] if which == "1" else spec.shape[1]
    if spec.numel % (count * fixed):
        raise PlanError(f"{match[0]} {list(spec.shape)} does not hold {count} experts")
    other = spec.numel // (count * fixed)
    rows, columns = (fixed, other) if which == "1" else (other, fixed)
    names = [f"{where}:{stem}experts.linear_fc{which}.weight{e}" for e in range(count)]
    return turned(where, spec, names, rows, columns)
