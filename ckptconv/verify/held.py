"""Find where an output's files hold the tensors that a plan says are in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.containers.stored import Stored
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.casting import rounded
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import OutFile, Plan
from ckptconv.records import dataclass
from ckptconv.relations import Box, Drop, Pair, Relation, Spec
from ckptconv.relations.terms import concerning, operands
from ckptconv.verify.result import Mismatch

__all__ = ["Held", "differences", "hold", "planned", "way_of", "wholly_read"]


@dataclass(frozen=True, slots=True)
class Held:
    """Hold what the output's files must hold, and where.

    Attributes:
        plan: The plan with the output's files as they lie; their names are paths.
        padding: Elements of the output that stand for nothing, by the tensor of the plan.
        names: What tensors of the plan are called for people, where that is not their own name.
    """

    plan: Plan
    padding: Mapping[str, tuple[Drop, ...]]
    names: Mapping[str, str]


def planned(plan: Plan) -> dict[str, Spec]:
    """Return the tensors a plan writes."""
    return {t.name: Spec(t.shape, t.dtype.name) for f in plan.files for t in f.layout.tensors}


def differences(wanted: Mapping[str, Spec], there: Mapping[str, Spec]) -> list[Mismatch]:
    """Compare names, shapes and types of an output's tensors with those planned."""
    found = [Mismatch("missing", n, "is not in the output") for n in wanted if n not in there]
    for name, spec in there.items():
        if name not in wanted:
            found.append(Mismatch("unexpected", name, "is in the output, but not of the source"))
        elif spec.shape != wanted[name].shape:
            text = f"has shape {list(spec.shape)}, not {list(wanted[name].shape)}"
            found.append(Mismatch("shape", name, text))
        elif spec.dtype != wanted[name].dtype:
            found.append(Mismatch("dtype", name, f"is {spec.dtype}, not {wanted[name].dtype}"))
    return found


def way_of(plan: Plan, out: Checkpoint) -> Relation:
    """Relate an output's stored tensors to those of a plan: themselves (ranks), or tensors by name."""
    ours = planned(plan).keys()
    if len(ours & out.stored.keys()) <= len(ours & out.relation.right.keys()):
        return out.relation
    specs = {n: Spec(s.shape, s.dtype.name) for n, s in out.stored.items()}
    whole = tuple([Pair(Box.whole(n, s.shape), Box.whole(n, s.shape)) for n, s in specs.items() if s.numel])
    return Relation(specs, specs, whole)


def hold(plan: Plan, out: Checkpoint, way: Relation, wrong: Collection[str] = ()) -> Held:
    """Say which bytes of the output's files each tensor of a plan must be.

    Args:
        plan: Says what is written.
        out: The output, opened by its reader.
        way: Its stored tensors to those of the plan.
        wrong: Tensors that are not compared, since shape or type differ.

    Raises:
        PlanError: if the output holds tensors in a form they cannot be compared in.
        FormatError: if tensors of a file overlap.
    """
    plan, wanted = rounded(plan), planned(plan)
    names = [n for n in wanted if n in way.right and n not in wrong]
    places = _simple(way, out.stored, names)
    if all(n in places for n in names):
        files = _files(places, {n: wanted[n] for n in names}, out)
        kept = {n: c for n, c in plan.casts.items() if n not in wrong}
        return Held(_with(plan, plan.relation, kept, files), {}, {})
    return _composed(plan, out, way, places, names)


def _simple(way: Relation, stored: Mapping[str, Stored], names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return file and byte of the tensors that lie in one piece, in their order, and once."""
    pairs: dict[str, list[Pair]] = {n: [] for n in names}
    for pair in way.pairs:
        if pair.right.tensor in pairs:
            pairs[pair.right.tensor].append(pair)
    found = {}
    for name, held in pairs.items():
        numel = way.right[name].numel
        if numel == 0:
            found[name] = ("", 0)
            continue
        box, where = held[0].left, stored[held[0].left.tensor]
        one = len(held) == len(where.extents) == 1 and held[0].right.is_contiguous and box.is_contiguous
        if one and box.numel == numel == where.numel and where.dtype.name == way.right[name].dtype:
            found[name] = (where.extents[0].path, where.extents[0].offset)
    return found


def _composed(
    plan: Plan, out: Checkpoint, way: Relation, places: Mapping[str, tuple[str, int]], names: Sequence[str]
) -> Held:
    """Follow the plan to the output's stored tensors, and these to their runs in files."""
    added = [n for n in names if n not in places and n in plan.terms]
    if added:
        raise PlanError(
            f"{added[0]} is a sum, and lies in the output in parts: the two cannot be compared",
            where=out.data,
            hint="convert to Hugging Face's format, and verify that",
        )
    easy = [n for n in names if n in places]
    hard = [n for n in names if n not in places]
    inverse = way.select(hard).invert()
    unused = tuple([d for d in way.left_only if d.box.tensor in inverse.right])
    inverse = replace(inverse, right_only=(*inverse.right_only, *unused))
    inner = plan.relation.select(hard).compose(inverse)
    outer, located = _runs({k: out.stored[k] for k in inner.right})
    inner = inner.compose(outer)
    chains = _chains(plan, inverse, outer, out)
    kept = plan.relation.select([*easy, *operands(plan.terms, easy)])
    relation = Relation.union([kept, inner])
    casts = {n: c for n, c in plan.casts.items() if n in kept.right}
    casts |= {n: c for n, c in chains.items() if len(c) > 1}
    specs = {n: relation.right[n] for n in (*easy, *inner.right)}
    files = _files({**{n: places[n] for n in easy}, **located}, specs, out)
    padding: dict[str, tuple[Drop, ...]] = {}
    for drop in inner.right_only:
        padding[drop.box.tensor] = (*padding.get(drop.box.tensor, ()), drop)
    return Held(_with(plan, relation, casts, files), padding, _names(inverse, outer))


def _chains(plan: Plan, inverse: Relation, outer: Relation, out: Checkpoint) -> dict[str, tuple[DType, ...]]:
    """Return the types that what lies in each run of the output has passed through."""
    runs: dict[str, list[str]] = {}
    for pair in outer.pairs:
        runs.setdefault(pair.left.tensor, []).append(pair.right.tensor)
    chains: dict[str, tuple[DType, ...]] = {}
    for pair in inverse.pairs:
        name, key = pair.left.tensor, pair.right.tensor
        chain = plan.casts.get(name, (dtype_named(plan.relation.right[name].dtype),))
        if chain[-1] != (last := out.stored[key].dtype):
            chain = (*chain, last)
        for run in runs[key]:
            if chains.setdefault(run, chain) != chain:
                raise PlanError(f"{key} holds values that were cast in several ways", where=out.data)
    return chains


def _runs(stored: Mapping[str, Stored]) -> tuple[Relation, dict[str, tuple[str, int]]]:
    """Relate stored tensors to their runs in files, each a tensor; return also where these lie."""
    left = {k: Spec(s.shape, s.dtype.name) for k, s in stored.items()}
    right: dict[str, Spec] = {}
    pairs: list[Pair] = []
    places: dict[str, tuple[str, int]] = {}
    for key, s in stored.items():
        ends = [*(e.start for e in s.extents[1:]), s.numel]
        for extent, end in zip(s.extents, ends, strict=True):
            if extent.start == end:
                continue
            name = key if len(s.extents) == 1 else f"{key}[{extent.start}:{end}]"
            shape = s.shape if len(s.extents) == 1 else (end - extent.start,)
            right[name] = Spec(shape, s.dtype.name)
            places[name] = (extent.path, extent.offset)
            pairs.append(Pair(Box.interval(key, extent.start, end), Box.whole(name, shape)))
    return Relation(left, right, tuple(pairs)), places


def _names(inverse: Relation, outer: Relation) -> dict[str, str]:
    """Return for each run of an output the tensors it holds parts of."""
    held: dict[str, list[str]] = {}
    for pair in inverse.pairs:
        if pair.left.tensor not in held.setdefault(pair.right.tensor, []):
            held[pair.right.tensor].append(pair.left.tensor)
    return {p.right.tensor: ", ".join(held[p.left.tensor][:3]) for p in outer.pairs if p.left.tensor in held}


def _files(
    places: Mapping[str, tuple[str, int]], specs: Mapping[str, Spec], out: Checkpoint
) -> tuple[OutFile, ...]:
    """Lay tensors out as the output's files have them."""
    by_path: dict[str, list[Placed]] = {stamp.path: [] for stamp in out.files}
    for name, spec in specs.items():
        if spec.numel:
            path, byte = places[name]
            by_path[path].append(Placed(name, dtype_named(spec.dtype), spec.shape, byte))
    files = []
    for stamp in out.files:
        for tensors in _apart(sorted(by_path[stamp.path], key=lambda t: t.offset), stamp.path):
            files.append(OutFile(stamp.path, "bin", FileLayout(stamp.size, (), tuple(tensors))))
    return tuple(files)


def _apart(tensors: Sequence[Placed], path: str) -> list[list[Placed]]:
    """Part tensors that are stored once for several names: each name has to be what is stored."""
    layers: list[list[Placed]] = [[]]
    last: list[Placed] = []
    for tensor in tensors:
        if not last or last[0].offset + last[0].nbytes <= tensor.offset:
            last = []
        elif (last[0].offset, last[0].nbytes) != (tensor.offset, tensor.nbytes):
            raise FormatError(f"{last[0].name} and {tensor.name} share bytes", where=path)
        if len(layers) == len(last):
            layers.append([])
        layers[len(last)].append(tensor)
        last.append(tensor)
    return layers


def _with(
    plan: Plan,
    relation: Relation,
    casts: Mapping[str, tuple[DType, ...]],
    files: tuple[OutFile, ...],
) -> Plan:
    """Return a plan of these files. A copy of a copy is left out: two other comparisons say as much."""
    pairs = tuple([p for p in relation.pairs if not (p.left_copy and p.right_copy)])
    written = {t.name for f in files for t in f.layout.tensors}
    return replace(
        plan,
        relation=replace(relation, pairs=pairs),
        casts=casts,
        files=files,
        assets=(),
        terms=concerning(plan.terms, written),
    )


def wholly_read(plan: Plan) -> Plan:
    """Return a plan whose file no one writes: all tensors as they are stored, one after the other."""
    right = {
        n: s._replace(dtype=plan.casts[n][0].name) if n in plan.casts else s
        for n, s in plan.relation.right.items()
    }
    tensors, at = [], 0
    for name, spec in right.items():
        if spec.numel:
            at += -at % 16
            tensors.append(Placed(name, dtype_named(spec.dtype), spec.shape, at))
            at += tensors[-1].nbytes
    file = OutFile("the source", "bin", FileLayout(at, (), tuple(tensors)))
    return replace(
        plan, relation=replace(plan.relation, right=right), casts={}, terms={}, files=(file,), assets=()
    )
