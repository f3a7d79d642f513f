"""Spread the slots of a model over ranks, as a framework of a dialect would hold them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from ckptconv.dialects.base import Dialect, Line
from ckptconv.errors import PlanError
from ckptconv.parallel import Chunk, Grid, Rank, Stages, chunk_order
from ckptconv.records import dataclass
from ckptconv.relations import Spec, chunk_sizes
from ckptconv.slots import Dims, Found, Words
from ckptconv.slots.entry import fill_in

__all__ = ["Layout", "Spread", "spread"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Say how a model is to be laid out.

    Attributes:
        grid: The ranks.
        stages: Layers of each chunk.
        dialect: Names and cuts.
        experts: ``sequential``, ``grouped`` (one tensor an expert) or ``legacy-grouped`` (all in one).
        split_latent: MindSpeed's ``--mla-mm-split``.
        vocab: Rows of the vocabulary with padding; None to leave it and cut it unevenly.
        apart: Whether parts that a rank holds in one tensor have names of their own, as ``torch_dist`` saves
            them.
    """

    grid: Grid
    stages: Stages
    dialect: Dialect
    experts: str = "sequential"
    split_latent: bool = False
    vocab: int | None = None
    apart: bool = False

    def words(self, slots: Iterable[str]) -> Words:
        """Return what a model of these slots, laid out like this, is like."""
        forms = {"mm_split": self.split_latent, "sequential": self.experts == "sequential"}
        forms["apart"] = self.apart
        return Words.of_slots(slots, [form for form, on in forms.items() if on])


@dataclass(frozen=True, slots=True)
class Spread:
    """Hold the outcome: whole tensors by the dialect's names, and what each rank holds of them.

    Attributes:
        whole: Shape and dtype of the whole tensors.
        held: For each rank and virtual chunk its tensors.
    """

    whole: Mapping[str, Spec]
    held: Mapping[Rank, Mapping[int, Mapping[str, Spec]]]


def spread(layout: Layout, slots: Mapping[str, Spec], dims: Dims) -> Spread:
    """Decide what each rank holds.

    Args:
        layout: The ranks and the dialect.
        slots: Shape and dtype of the slots; a tied head is one of them where the last stage needs it.
        dims: The sizes of the model.

    Raises:
        PlanError: if the dialect has no place for a slot, or a tensor cannot be cut evenly.
    """
    _heads(layout.grid.tp, slots, dims)
    if (
        layout.grid.tp > 1
        and layout.dialect.name.startswith("mindspeed")
        and any(".gdn." in s for s in slots)
    ):
        raise PlanError(
            f"MindSpeed-LLM does not cut gated delta nets over {layout.grid.tp} tensor parallel ranks",
            hint="choose --tp 1, or the dialect core-te",
        )
    table = layout.dialect.table(layout.words(slots), {"tp": layout.grid.tp}).with_own(dims)
    found, left = table.holding(slots)
    if left:
        raise PlanError(
            f"the dialect {layout.dialect.name} has no place for {', '.join(left[:4])}"
            + (f" and {len(left) - 4} more" if len(left) > 4 else ""),
            hint="choose another --dialect: a model that computes with them has to be written with them",
        )
    whole = table.specs(found, slots, dims)
    for f in found:
        if layout.vocab is not None and f.entry.pack in _VOCABULARY:
            whole[f.name] = whole[f.name]._replace(shape=(layout.vocab, *whole[f.name].shape[1:]))
    return Spread(whole, _held(layout, found, whole, slots, dims))


_VOCABULARY = ("embed", "head", "head.bias")
# Ranks that hold the same: their stage, their block of experts, and their slice of a vocabulary cut unevenly.
_Place = tuple[int, int, int]


def _held(
    layout: Layout, found: Sequence[Found], whole: Mapping[str, Spec], slots: Collection[str], dims: Dims
) -> dict[Rank, dict[int, Mapping[str, Spec]]]:
    """Return what each rank holds; those that hold tensors of the same names and shapes share a mapping."""
    grid = layout.grid
    uneven = layout.vocab is None and grid.tp > 1 and any(f.slots[0] in _VOCABULARY for f in found)
    alike: dict[_Place, list[Rank]] = {}
    for rank in grid.ranks():
        block, _ = grid.experts(rank)
        alike.setdefault((rank.pp, block, rank.tp if uneven else 0), []).append(rank)
    held: dict[_Place, dict[int, dict[str, Spec]]] = {
        place: {v: {} for v in range(grid.vpp)} for place in alike
    }
    of_stage: dict[int, list[_Place]] = {}
    of_block: dict[tuple[int, int], list[_Place]] = {}
    for place in alike:
        of_stage.setdefault(place[0], []).append(place)
        of_block.setdefault(place[:2], []).append(place)
    chunks = _Chunks(layout, slots)
    for f in found:
        line = f.entry if isinstance(f.entry, Line) else Line(f.entry.name, f.entry.pack)
        block, expert = _expert(grid, f, dims)
        specs = _slices(layout, f, line, whole[f.name])
        for chunk, number in chunks.of(f):
            values = (*((number,) if "*" in line.name else ()), *((expert,) if f.expert else ()))
            name = fill_in(line.name, values)
            for place in of_block[chunk.pp, block] if f.expert else of_stage[chunk.pp]:
                held[place][chunk.vpp][name] = specs[place[2] % len(specs)]
    if layout.experts == "legacy-grouped":
        held = {place: {v: _together(t) for v, t in chunks.items()} for place, chunks in held.items()}
    made: dict[Rank, dict[int, Mapping[str, Spec]]] = {rank: {} for rank in grid.ranks()}
    kept: dict[tuple[int, int], list[Mapping[str, Spec]]] = {}  # of each chunk, what differs
    for place, ranks in alike.items():
        for v, tensors in held[place].items():
            others = kept.setdefault((place[0], v), [])
            if tensors not in others:
                others.append(tensors)
            for rank in ranks:
                made[rank][v] = others[others.index(tensors)]
    return made


def _heads(tp: int, slots: Collection[str], dims: Dims) -> None:
    """Refuse ranks that would not have whole heads; a query group may be cut over ranks.

    Megatron-LM core_v0.16.1, ``megatron/core/transformer/attention.py``, ``Attention.__init__``.
    """
    heads, groups = dims.get("heads", tp), dims.get("kv_heads", tp)
    latent = not any(".attn.k" in s for s in slots)
    if heads % tp or (not latent and groups % tp and tp % groups):
        what = f"{heads} attention heads" + ("" if latent else f" in {groups} query groups")
        raise PlanError(
            f"{what} cannot be divided over {tp} tensor parallel ranks", hint="choose another --tp"
        )


class _Chunks:
    """Know which chunks hold a tensor."""

    def __init__(self, layout: Layout, slots: Collection[str]) -> None:
        order = chunk_order(layout.grid)
        self._first, self._last = order[0], order[-1]
        self._predicts = any(s.startswith("mtp.") for s in slots)
        self._layers: dict[str, list[tuple[Chunk, int]]] = {}
        for chunk, layers in layout.stages.items():
            for local, layer in layers.items():
                self._layers.setdefault(str(layer), []).append((chunk, local))

    def of(self, found: Found) -> list[tuple[Chunk, int]]:
        """Return the chunks that hold a tensor, and the number of its layer there."""
        kind, _, number = found.layer.partition(".")
        if kind == "layers":
            return self._layers.get(number, [])
        if kind == "mtp":
            return [(self._last, int(number))]
        if found.slots[0].startswith(("final_norm", "head")):
            return [(self._last, 0)]
        if found.slots[0] == "embed" and self._first != self._last and self._predicts:
            return [(self._first, 0), (self._last, 0)]  # the last stage embeds what is predicted
        return [(self._first, 0)]


def _expert(grid: Grid, found: Found, dims: Dims) -> tuple[int, int]:
    """Return the block an expert is in, and its number there; zeros of what is none."""
    if not found.expert:
        return 0, 0
    if dims["experts"] % grid.blocks:
        raise PlanError(
            f"{dims['experts']} experts cannot be divided over {grid.blocks} ranks",
            hint="choose another --ep",
        )
    return divmod(int(found.expert), dims["experts"] // grid.blocks)


def _slices(layout: Layout, found: Found, line: Line, spec: Spec) -> Sequence[Spec]:
    """Return what the slices of a tensor are; one where all are alike."""
    slices = layout.grid.etp if found.expert else layout.grid.tp
    axis = line.cut.axis
    if axis is None or slices == 1 or line.tells is not None:
        return (spec,)
    size = spec.shape[axis]
    if layout.vocab is None and found.slots[0] in _VOCABULARY:
        sizes = chunk_sizes(size, slices)
    elif size % (slices * line.cut.parts):
        raise PlanError(
            f"{found.name} {list(spec.shape)} cannot be cut evenly into {slices} along axis {axis}",
            hint="choose a tensor parallel size that divides it",
        )
    else:
        sizes = [size // slices]
    return [Spec((*spec.shape[:axis], own, *spec.shape[axis + 1 :]), spec.dtype) for own in sizes]


_SINGLE = re.compile(r"(.*\.mlp\.experts\.)linear_fc([12])\.weight(\d+)")


def _together(tensors: Mapping[str, Spec]) -> dict[str, Spec]:
    """Put a rank's experts of each layer into one tensor, as the legacy grouped MLP holds them."""
    made: dict[str, Spec] = {}
    for name, spec in tensors.items():
        match = _SINGLE.fullmatch(name)
        if match is None:
            made[name] = spec
            continue
        out, into = spec.shape
        key = f"{match[1]}weight{match[2]}"
        before = made.get(key)
        if match[2] == "1":  # [in, experts * out]
            made[key] = Spec((into, out + (before.shape[1] if before else 0)), spec.dtype)
        else:  # [experts * in, out]
            made[key] = Spec((into + (before.shape[0] if before else 0), out), spec.dtype)
    return made
