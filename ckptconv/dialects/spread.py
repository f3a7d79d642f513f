"""Spread the slots of a model over ranks, as a framework of a dialect would hold them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

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
        if layout.vocab is not None and f.entry.pack in ("embed", "head", "head.bias"):
            whole[f.name] = whole[f.name]._replace(shape=(layout.vocab, *whole[f.name].shape[1:]))
    held: dict[Rank, dict[int, dict[str, Spec]]] = {
        rank: {v: {} for v in range(layout.grid.vpp)} for rank in layout.grid.ranks()
    }
    by_stage: dict[int, list[Rank]] = {}
    for rank in held:
        by_stage.setdefault(rank.pp, []).append(rank)
    for f in found:
        for chunk, number in _chunks(layout, f, slots):
            for rank in by_stage[chunk.pp]:
                made = _local(layout, rank, f, number, whole[f.name], dims)
                if made is not None:
                    name, spec = made
                    held[rank][chunk.vpp][name] = spec
    if layout.experts == "legacy-grouped":
        held = {r: {v: _together(t) for v, t in chunks.items()} for r, chunks in held.items()}
    return Spread(whole, held)


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


def _chunks(layout: Layout, found: Found, slots: Collection[str]) -> Iterator[tuple[Chunk, int]]:
    """Yield the chunks that hold a tensor, and the number of its layer there."""
    order = chunk_order(layout.grid)
    first, last = order[0], order[-1]
    kind, _, number = found.layer.partition(".")
    if kind == "layers":
        for chunk, layers in layout.stages.items():
            yield from ((chunk, local) for local, layer in layers.items() if layer == int(number))
    elif kind == "mtp":
        yield last, int(number)
    elif found.slots[0].startswith(("final_norm", "head")):
        yield last, 0
    else:
        yield first, 0
        if found.slots[0] == "embed" and first != last and any(s.startswith("mtp.") for s in slots):
            yield last, 0  # multi-token prediction embeds on the last stage


def _local(
    layout: Layout, rank: Rank, found: Found, number: int, spec: Spec, dims: Dims
) -> tuple[str, Spec] | None:
    """Return name and shape of a rank's slice; None if it holds none."""
    line = found.entry if isinstance(found.entry, Line) else Line(found.entry.name, found.entry.pack)
    values: tuple[int, ...] = (number,) if "*" in line.name else ()
    grid = layout.grid
    slices, at = grid.tp, rank.tp
    if found.expert:
        block, at = grid.experts(rank)
        if dims["experts"] % grid.blocks:
            raise PlanError(
                f"{dims['experts']} experts cannot be divided over {grid.blocks} ranks",
                hint="choose another --ep",
            )
        count = dims["experts"] // grid.blocks
        if int(found.expert) // count != block:
            return None
        values = (*values, int(found.expert) % count)
        slices = grid.etp
    name = fill_in(line.name, values)
    axis = line.cut.axis
    if axis is None or slices == 1 or line.tells is not None:
        return name, spec
    size = spec.shape[axis]
    if layout.vocab is None and found.slots[0] in ("embed", "head", "head.bias"):
        own = chunk_sizes(size, slices)[at]
    elif size % (slices * line.cut.parts):
        raise PlanError(
            f"{found.name} {list(spec.shape)} cannot be cut evenly into {slices} along axis {axis}",
            hint="choose a tensor parallel size that divides it",
        )
    else:
        own = size // slices
    return name, Spec((*spec.shape[:axis], own, *spec.shape[axis + 1 :]), spec.dtype)


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
