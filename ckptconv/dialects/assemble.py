"""Join what the ranks of a model hold into whole tensors, numbered through the model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ckptconv.dialects.base import Dialect, Line
from ckptconv.dialects.factors import Factor, factor_cut, factor_of, is_gate_told, unpack_factor, with_implied
from ckptconv.dialects.stacked import turned
from ckptconv.errors import PlanError
from ckptconv.parallel import Chunk, Cut, Grid, Rank, Shard, merge_shards, number_layers
from ckptconv.records import dataclass
from ckptconv.relations import Box, Pair, Relation, Spec
from ckptconv.relations.gather import Gathering, Stamp
from ckptconv.slots import Pack, Table, Words
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
        words: What the model and its layers are like, as far as reading asks.
        stages: For every chunk its layers, local number to number in the model.
        unknown: Whole tensors the dialect has no name for; taken for replicas.
    """

    relation: Relation
    table: Table
    words: Words
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


_LEGACY_EXPERTS = re.compile(r"(.*\.mlp\.)experts\.weight([12])")


def assemble(
    grid: Grid, held: Held, dialect: Dialect, key: Key, *, version: float = 3.0, words: Words | None = None
) -> Assembled:
    """Join the tensors of all ranks.

    Args:
        grid: The ranks.
        held: What each holds; all ranks of the grid are there.
        dialect: How it is named and cut.
        key: Name of the left side for a rank's tensor.
        version: The checkpoint's ``checkpoint_version``.
        words: What the model is like, if its names are not to tell.

    Raises:
        PlanError: if ranks disagree about what there is, or slices do not fit together.
    """
    _same_names(grid, held)
    stems = _stems(dialect)
    stages = number_layers(grid, _local_layers(held, stems))
    words = words if words is not None else _told(held, dialect, stages)
    lines = old_versions(dialect.lines, version)
    joining = _Joining(grid, key, words, stages, stems)
    joining.apart = _apart(grid, held, dialect)
    for line in lines:
        joining.index[form(line.name)].append(line)
    for part in dialect.parts:
        for entry in part.table.entries if part.table is not None else ():
            if isinstance(entry, Line):
                joining.beside[numbers(form(part.prefix + entry.name))[0]] = entry
    for rank, chunks in held.items():
        for v, tensors in chunks.items():
            joining.add(rank, v, tensors)
    relation, unknown = joining.relation()
    table = Table(lines, words=words, grid={"tp": grid.tp}, parts=dialect.parts)
    return Assembled(relation, table, words, stages, unknown)


def _apart(grid: Grid, held: Held, dialect: Dialect) -> dict[str, dict[Chunk, dict[int, int]]]:
    """Return how the layers of other parts are numbered through the model, by what their names begin with.

    They lie on stages of their own choosing, and start at 0 on each as the language model's do.
    """
    stems = {
        part.prefix + entry.name.partition("*")[0]
        for part in dialect.parts
        for entry in (part.table.entries if part.table is not None else ())
        if "*" in entry.name
    }
    found: dict[str, dict[Chunk, set[int]]] = {}
    for chunk, tensors in _distinct(held) if stems else ():
        for name in tensors:
            if (stem := next((s for s in stems if name.startswith(s)), None)) is not None:
                number = name.removeprefix(stem).partition(".")[0]
                if number.isdigit():
                    found.setdefault(stem, defaultdict(set))[chunk].add(int(number))
    return {stem: number_layers(grid, local) for stem, local in found.items()}


def _local_layers(held: Held, stems: Collection[str]) -> dict[Chunk, set[int]]:
    """Return the numbers of the layers each chunk has, as it numbers them."""
    local: dict[Chunk, set[int]] = defaultdict(set)
    for chunk, tensors in _distinct(held):
        local[chunk] |= {at[1] for name in tensors if (at := _layer(name, stems)) is not None}
    return local


def _told(held: Held, dialect: Dialect, stages: Mapping[Chunk, Mapping[int, int]]) -> Words:
    """Return what names and shapes tell of the layers, numbered through the model."""
    parts = list(_distinct(held))
    every = {name: spec for _, tensors in parts for name, spec in tensors.items()}
    found = []
    unlike = _unlike(parts)
    for chunk, tensors in parts:
        alike = {n: s for n, s in tensors.items() if n not in unlike[chunk]}
        local, numbered = dialect.told(with_implied(alike), every), stages.get(chunk, {})
        layers = {
            f"layers.{numbered[int(number)]}" if kind == "layers" else f"mtp.{number}": words
            for layer, words in local.layers.items()
            for kind, _, number in [layer.partition(".")]
        }
        found.append(replace(local, layers=layers))
    known = with_implied(every)
    if len(known) > len(every) and not is_gate_told(known):
        raise PlanError(
            "the adapter alone does not tell whether the MLP has a gate",
            hint="give the checkpoint it was trained on as the source, and this one with --adapter",
        )
    return dialect.reading(Words.joined(found))


def _unlike(parts: Sequence[tuple[Chunk, Mapping[str, Spec]]]) -> dict[Chunk, set[str]]:
    """Return what ranks of one stage hold in different shapes, which tells nothing and is a fault."""
    seen: dict[Chunk, dict[str, Spec]] = defaultdict(dict)
    found: dict[Chunk, set[str]] = defaultdict(set)
    for chunk, tensors in parts:
        found[chunk] |= {n for n, s in tensors.items() if seen[chunk].setdefault(n, s).shape != s.shape}
    return found


class _Part(NamedTuple):
    """Say what a tensor of a rank is a part of.

    Attributes:
        name: Its name in the rank.
        where: The left side it is.
        spec: Its shape and dtype.
        whole: The name of the whole one in the table.
        values: The numbers in that, an expert's as the rank counts.
        factor: What it is of an adapter.
        expert: Whether it is an expert's.
        cut: How it is cut.
    """

    name: str
    where: str
    spec: Spec
    whole: str
    values: tuple[int, ...]
    factor: Factor | None
    expert: bool
    cut: Cut

    def of(self, first: int) -> str:
        """Return the whole tensor's name, where a rank's experts begin with this one."""
        values = (*self.values[:-1], first + self.values[-1]) if self.expert else self.values
        whole = fill_in(self.whole, values)
        return whole if self.factor is None else self.factor.name(whole)


class _Joining:
    """Collect what ranks hold, by the whole tensors it belongs to."""

    def __init__(
        self,
        grid: Grid,
        key: Key,
        words: Words,
        stages: Mapping[Chunk, Mapping[int, int]],
        stems: Collection[str],
    ) -> None:
        self.index: dict[str, list[Line]] = defaultdict(list)
        self.beside: dict[str, Line] = {}
        self.apart: Mapping[str, Mapping[Chunk, Mapping[int, int]]] = {}
        self._grid, self._key, self._words, self._stages = grid, key, words, stages
        self._stems = stems
        self._shards: dict[str, list[Shard]] = defaultdict(list)
        self._cuts: dict[str, tuple[Cut, int]] = {}
        self._unpacked: list[Relation] = []
        self._strange: dict[str, list[Shard]] = defaultdict(list)
        # Ranks that share a mapping, as those of one stage do, differ in numbers of slices and experts alone.
        self._known: dict[tuple[Chunk, int], tuple[int, list[_Part]]] = {}

    def add(self, rank: Rank, v: int, tensors: Mapping[str, Spec]) -> None:
        """Take in what a rank holds in a chunk."""
        chunk = Chunk(rank.pp, v)
        block, slice_of_expert = self._grid.experts(rank)
        known = self._known.get((chunk, id(tensors)))
        if known is None:
            before = len(self._unpacked), len(self._strange)
            count, parts = self._parts(rank, chunk, tensors)
            if (len(self._unpacked), len(self._strange)) == before and not self._strange:
                self._known[chunk, id(tensors)] = count, parts
        else:
            count, parts = known
        for part in parts:
            where = part.where if known is None else self._key(rank, v, part.name)
            slice_, size = (slice_of_expert, self._grid.etp) if part.expert else (rank.tp, self._grid.tp)
            whole = part.of(block * count)
            self._cuts[whole] = (part.cut, size)
            self._shards[whole].append(Shard(where, part.spec, slice_ if part.cut.axis is not None else 0))

    def _parts(self, rank: Rank, chunk: Chunk, tensors: Mapping[str, Spec]) -> tuple[int, list[_Part]]:
        """Return how many experts of a layer a rank holds in a chunk, and what its tensors are parts of."""
        layers = self._stages.get(chunk, {})
        plain = self._plain(rank, chunk.vpp, tensors)
        weights = with_implied({n: s for n, (_, s) in plain.items()})
        parts: list[_Part] = []
        for name, (where, spec) in plain.items():
            factor = factor_of(name)
            weight = name if factor is None else factor.weight
            line, values = self._line(weight, layers, chunk)
            if line is None:
                self._strange[_renamed(name, layers, self._stems)].append(Shard(where, spec))
                continue
            cut = _cut(line, weights.get(weight, spec), weight, weights)
            if factor is not None:
                cut = factor_cut(cut, factor.part)
            parts.append(_Part(name, where, spec, line.name, values, factor, "{e}" in line.name, cut))
        return _experts(weights), parts

    def _line(
        self, weight: str, layers: Mapping[int, int], chunk: Chunk
    ) -> tuple[Line | None, tuple[int, ...]]:
        """Return the line of a rank's tensor, and its numbers through the model."""
        shape, values = numbers(weight)
        if (beside := self.beside.get(shape)) is not None:
            stem = next((s for s in self.apart if weight.startswith(s)), None)
            if stem is None:
                return replace(beside, name=weight), values
            number, _, rest = weight.removeprefix(stem).partition(".")
            whole = self.apart[stem].get(chunk, {}).get(int(number), int(number))
            return replace(beside, name=f"{stem}{whole}.{rest}"), values
        for line in self.index.get(shape, ()):
            if "*" not in line.name:
                layer, numbered = "", values
            elif _predicts(line):
                layer, numbered = f"mtp.{values[0]}", values
            else:
                numbered = (layers[values[0]], *values[1:])
                layer = f"layers.{numbered[0]}"
            if self._words.holds(line.when, layer):
                return line, numbered
        return None, values

    def _plain(self, rank: Rank, v: int, tensors: Mapping[str, Spec]) -> dict[str, tuple[str, Spec]]:
        """Return tensors by their names, those of experts together taken apart: where they are, and what."""
        plain: dict[str, tuple[str, Spec]] = {}
        for name, spec in tensors.items():
            where = self._key(rank, v, name)
            if (match := _LEGACY_EXPERTS.fullmatch(name)) is not None:
                made: Relation | None = _one_by_one(self._grid, where, match, spec, tensors)
            else:
                made = unpack_factor(where, name, tensors)
            if made is None:
                plain[name] = (where, spec)
                continue
            self._unpacked.append(made)
            plain.update({n.rpartition(":")[2]: (n, s) for n, s in made.right.items()})
        return plain

    def _merged(self) -> Relation:
        """Return the tensors of ranks related to the whole ones they are slices and copies of."""
        stamps: dict[tuple[object, ...], Stamp] = {}
        made = Gathering()
        for name, shards in self._shards.items():
            keys, cut = [shard.key for shard in shards], self._cuts[name]
            form = (*cut, *[shard[1:] for shard in shards])
            if form not in stamps:
                stamps[form] = merge_shards(name, shards, *cut).stamp(keys, (name,))
            made.stamp(stamps[form], keys, (name,))
        return Relation.gathered(made)

    def relation(self) -> tuple[Relation, tuple[str, ...]]:
        """Return the ranks' tensors related to whole ones, and the whole ones that have no line."""
        joined = [self._merged()]
        unknown: list[str] = []
        for name, found in self._strange.items():
            if len({s.spec for s in found}) == 1:
                unknown.append(name)
                joined.append(merge_shards(name, found, Cut(), 1))
            else:  # slices of something: no one knows how they fit, so each has a name of its own
                unknown += [f"{name} of {s.key}" for s in found]
                joined += [merge_shards(f"{name} of {s.key}", [s], Cut(), 1) for s in found]
        relation = Relation.union(joined)
        if self._unpacked:
            first = Relation.union(self._unpacked)
            rest = {n: s for n, s in relation.left.items() if n not in first.right}
            same = tuple([Pair(Box.whole(n, s.shape), Box.whole(n, s.shape)) for n, s in rest.items()])
            relation = Relation.union([first, Relation(rest, rest, same)]).compose(relation)
        return relation, tuple(unknown)


def _distinct(held: Held) -> Iterator[tuple[Chunk, Mapping[str, Spec]]]:
    """Yield what the chunks hold, what several ranks share once."""
    seen: set[tuple[Chunk, int]] = set()
    for rank, chunks in held.items():
        for v, tensors in chunks.items():
            chunk = Chunk(rank.pp, v)
            if (chunk, id(tensors)) not in seen:
                seen.add((chunk, id(tensors)))
                yield chunk, tensors


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


def _predicts(line: Line) -> bool:
    """Whether a line is of a layer for multi-token prediction; a copy of what is in no layer lies there."""
    return line.slots[0].startswith("mtp.") or "*" not in line.slots[0]


def _stems(dialect: Dialect) -> frozenset[str]:
    """Return what the names of layers begin with; those for multi-token prediction do not count."""
    lines = (line for line in dialect.lines if "*" in line.name and not _predicts(line))
    return frozenset(line.name.partition("*")[0] for line in lines)


def _layer(name: str, stems: Collection[str]) -> tuple[str, int, str] | None:
    """Split a name at the number of its layer; other parts of a larger model number theirs apart."""
    if (match := _LAYER.fullmatch(name)) is None or match[1] not in stems:
        return None
    return match[1], int(match[2]), match[3]


def _renamed(name: str, layers: Mapping[int, int], stems: Collection[str]) -> str:
    at = _layer(name, stems)
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
