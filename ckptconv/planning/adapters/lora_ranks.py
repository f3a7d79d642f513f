"""Understand LoRA adapters inside checkpoints of ranks, under their framework's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ckptconv.dialects.factors import factor_of, is_beyond_lora, weight_of_factor
from ckptconv.dialects.mindformers.adapters import experts_apart
from ckptconv.errors import PlanError, UsageError
from ckptconv.places.places import place
from ckptconv.planning.adapters.adapter import WITH_PEFT, WITH_TRAINER, Scales
from ckptconv.planning.adapters.lora import Prepared
from ckptconv.planning.adapters.said import find_adapter_config
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.options import declared
from ckptconv.plans.request import Request
from ckptconv.readers.reader import Parallel
from ckptconv.readers.registry import open_checkpoint
from ckptconv.records import dataclass
from ckptconv.relations import Drop, LowRank, Pair, Relation, Spec
from ckptconv.relations.box import Box
from ckptconv.relations.terms import Term
from ckptconv.slots.translate import some

__all__ = ["prepare_ranks"]


@dataclass(slots=True)
class _Factors:
    """The names of the factors of one weight."""

    a: str = ""
    b: str = ""


def prepare_ranks(checkpoint: Checkpoint, options: Request) -> Prepared:
    """Do with the adapters of a checkpoint whose names a table translates what the options say.

    The terms are products added to its tensors under its own names.

    Raises:
        UsageError: if flags contradict each other or the checkpoint, or no alpha is known.
        PlanError: if there are adapters and nothing says what is to become of them, or they do not fit.
    """
    checkpoint = _one_by_one(checkpoint)
    found = _find(checkpoint, options)
    if options.lora is None and options.adapter is None:
        if found:
            raise PlanError(
                f"the checkpoint holds LoRA adapters of {len(found)} weights: {some(list(found), 2)}",
                where=checkpoint.data,
                hint="say what is to become of them: --lora merge adds them to their weights, --lora adapter "
                "writes them alone for PEFT",
            )
        return Prepared(checkpoint, checkpoint.terms)
    trained = checkpoint
    if options.adapter is not None:
        if found:
            raise UsageError(
                "--adapter: the checkpoint holds LoRA adapters itself", hint="merge those with --lora merge"
            )
        trained = _open(place(options.adapter).expanduser(), checkpoint, options)
        _find(trained, options)  # refuses what is no plain LoRA before it is compared with the source
        checkpoint = _one_by_one(_beside(checkpoint, trained))
        found = _find(checkpoint, options)
    if not found:
        raise UsageError("the checkpoint holds no LoRA adapters", hint="leave out --lora")
    tensors = checkpoint.relation.right
    scales = Scales.of(find_adapter_config(trained, trained.root, trained.data), options)
    terms: dict[str, tuple[Term, ...]] = {}
    for weight, factors in found.items():
        rank = _rank(weight, factors, tensors, checkpoint.data)
        if weight not in tensors and options.lora != "adapter":
            raise PlanError(
                f"there is a LoRA adapter of {weight}, but no such weight",
                where=checkpoint.data,
                hint="give the checkpoint of the base model as the source, and this one with --adapter; or "
                "write it alone with --lora adapter, and give that with --adapter to a Hugging Face model",
            )
        scale = scales.scale_of(weight.rpartition(".")[0], rank)
        terms[weight] = (LowRank(factors.a, factors.b, scale),)
    return Prepared(checkpoint, {**checkpoint.terms, **terms})


def _one_by_one(checkpoint: Checkpoint) -> Checkpoint:
    """Take experts apart that lie in one tensor and have adapters."""
    if checkpoint.table is None:
        return checkpoint
    apart = experts_apart(checkpoint.relation.right, checkpoint.table)
    if apart is None:
        return checkpoint
    return replace(checkpoint, relation=checkpoint.relation.compose(apart[0]), table=apart[1])


def _find(checkpoint: Checkpoint, options: Request) -> dict[str, _Factors]:
    """Find the factors of each weight; dropped ones are not looked at.

    Raises:
        PlanError: if there are several adapters, or one is no plain LoRA.
    """
    found: dict[str, _Factors] = {}
    adapters: dict[str, str] = {}
    for name in checkpoint.relation.right:
        if options.leaves_out(name):
            continue
        if is_beyond_lora(name):
            raise PlanError(
                f"{name} is of an adapter that is no plain LoRA", where=checkpoint.data, hint=WITH_TRAINER
            )
        if (factor := factor_of(name)) is None:
            continue
        adapters.setdefault(factor.adapter, name)
        here = found.setdefault(factor.weight, _Factors())
        if factor.part == "A":
            here.a = name
        else:
            here.b = name
    if len(adapters) > 1:
        raise PlanError(
            f"the checkpoint holds several adapters: {', '.join(sorted(adapters.values()))}",
            where=checkpoint.data,
            hint="leave out all but one with --drop, for example --drop '*.lora_?.NAME.*'",
        )
    return found


def _rank(weight: str, factors: _Factors, tensors: Mapping[str, Spec], where: Path) -> int:
    if not factors.a or not factors.b:
        raise PlanError(
            f"{weight} has {factors.a or factors.b}, but not the other factor",
            where=where,
            hint="copy the checkpoint again",
        )
    a, b = tensors[factors.a].shape, tensors[factors.b].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
        raise PlanError(
            f"{factors.a} {list(a)} and {factors.b} {list(b)} are not of one rank",
            where=where,
            hint=WITH_PEFT,
        )
    return a[0]


def _open(folder: Path, base: Checkpoint, options: Request) -> Checkpoint:
    """Open the ranks of an adapter; they may be laid out otherwise than those of the model.

    Raises:
        UsageError: if there are none, or they hold no adapter.
    """
    hint = "give the folder of the adapter's run; for a PEFT folder, convert the source first"
    if not folder.is_dir() or any(folder.glob("adapter_model.*")):
        raise UsageError(f"--adapter: {folder} holds no ranks, as the source does", hint=hint)
    sizes = {n: v for n, v in options.reading.items() if n in declared(Parallel)}
    opened = open_checkpoint(folder, sizes, words=base.words)
    names = opened.relation.right
    if opened.table is None or not any(weight_of_factor(n) or is_beyond_lora(n) for n in names):
        raise UsageError(f"--adapter: there are no LoRA adapters in {folder}", hint=hint)
    return opened


def _beside(base: Checkpoint, trained: Checkpoint) -> Checkpoint:
    """Put an adapter's factors beside a model's tensors; what else it holds is compared with the model's.

    MindSpeed-LLM saves frozen weights with an adapter unless told otherwise, and its own converter takes
    them instead of the model's (c77308a1, ``convert_mg2hf.py``, ``_load_lora_override``).

    Raises:
        PlanError: if it holds tensors that the model has not, or that are of another shape there.
    """
    ours, theirs = base.relation.right, trained.relation.right
    factors = {n: s for n, s in theirs.items() if weight_of_factor(n) is not None}
    copies = {n: s for n, s in theirs.items() if n not in factors}
    for name, spec in copies.items():
        if name not in ours or ours[name].shape[1:] != spec.shape[1:]:
            there = list(ours[name].shape) if name in ours else "not"
            raise PlanError(
                f"{name} is {list(spec.shape)} beside the adapter, but {there} in the source",
                where=trained.data,
                hint="give the adapter of this very model; if the whole model lies beside it, convert that "
                "with --lora merge",
            )
    compared = {n for n, s in copies.items() if s.shape == ours[n].shape}
    left = {f"adapter/{n}": s for n, s in trained.relation.left.items()}
    pairs, drops = [], [_drop(d.box, d.reason) for d in trained.relation.left_only]
    for pair in trained.relation.pairs:
        own = pair.left._replace(tensor=f"adapter/{pair.left.tensor}")
        if pair.right.tensor in factors:
            pairs.append(pair._replace(left=own))
        elif pair.right.tensor in compared:
            pairs.append(Pair(own, pair.right, left_copy=True))
        elif not pair.right_copy:
            drops.append(Drop(own, "padded otherwise than the model's"))
    relation = Relation(
        {**base.relation.left, **left},
        {**ours, **factors},
        (*base.relation.pairs, *pairs),
        (*base.relation.left_only, *drops),
        base.relation.right_only,
    )
    relation.check()
    text = (
        f"adapter {trained.data}: {len(factors)} factors; {len(compared)} other tensors must be the source's"
    )
    return replace(
        base,
        relation=relation,
        stored={**base.stored, **{f"adapter/{k}": s for k, s in trained.stored.items()}},
        files=tuple(dict.fromkeys((*base.files, *trained.files))),
        notes=(*base.notes, Note("info", text)),
    )


def _drop(box: Box, reason: str) -> Drop:
    return Drop(box._replace(tensor=f"adapter/{box.tensor}"), reason)
