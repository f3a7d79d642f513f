"""Join tensor-parallel ranks of GPT-NeoX and Megatron-DeepSpeed: Megatron's layers trained with DeepSpeed.

Their files do not say how a parameter was cut: the names of Megatron's modules do. GPT-NeoX ea7aefd8,
``megatron/mpu/layers.py``, ``tools/ckpts/convert_neox_to_hf.py``; Megatron-DeepSpeed (BigScience) 3ae0b2c,
``megatron/model/transformer.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from ckptconv.containers.base import FileTensor
from ckptconv.errors import PlanError
from ckptconv.facts.neox import neox_settings
from ckptconv.parallel import Cut, Shard, merge_shards
from ckptconv.readers.deepspeed.assemble import Reading
from ckptconv.readers.deepspeed.locate import tensors_of
from ckptconv.readers.deepspeed.states import ModelRank, load
from ckptconv.relations import Relation, Scaled, Spec
from ckptconv.relations.terms import Term

__all__ = ["named_alike"]

_LAYER: Final = r"(?:.+\.)?(?:\d+\.)"
_COLUMN: Final = re.compile(
    rf"{_LAYER}(?:(?:self_)?attention\.(?:query_key_value|qkv)\.(?:weight|bias)"
    r"|mlp\.(?:dense_h_to_4h|linear1|w1|w3)\.(?:weight|bias)|mlp\.fc1_(?:weight|bias)"
    r"|word_embeddings\.weight|final_linear\.weight)"
    r"|(?:.+\.)?(?:word_embeddings|final_linear|embed)\.weight|.*tied_modules\.embed\.word_embeddings\.weight"
)
_ROW: Final = re.compile(
    rf"{_LAYER}(?:(?:self_)?attention\.(?:dense|proj)\.weight"
    r"|mlp\.(?:dense_4h_to_h|linear2|w2)\.weight|mlp\.fc2_weight)"
)
_ROW_BIAS: Final = re.compile(
    rf"{_LAYER}(?:(?:self_)?attention\.(?:dense|proj)\.bias|mlp\.(?:dense_4h_to_h|linear2)\.bias|mlp\.fc2_bias)"
)
_UP: Final = re.compile(r"(.*)mlp\.linear1\.weight")


def _cut_of(name: str, spec: Spec, tensors: Mapping[str, Spec]) -> Cut:
    """Return how a tensor is cut over the ranks.

    Args:
        name: The tensor.
        spec: A rank's slice.
        tensors: All that a rank holds: a projection with a gate has twice the rows its sibling has columns.
    """
    if _COLUMN.fullmatch(name) is not None:
        down = tensors.get(m[1] + "mlp.linear2.weight") if (m := _UP.fullmatch(name)) is not None else None
        gated = down is not None and spec.shape[0] == 2 * down.shape[-1]
        return Cut(0, 2 if gated else 1)
    return Cut(1) if _ROW.fullmatch(name) is not None else Cut()


def _is_megatron(names: Sequence[str]) -> bool:
    """Whether names are those of Megatron's layers."""
    return any(_ROW.fullmatch(n) for n in names) and any(_COLUMN.fullmatch(n) for n in names)


def _module_of_rank(reading: Reading, rank: ModelRank, tp: int) -> dict[str, FileTensor]:
    """Return what a tensor-parallel rank's files hold, a pipeline's layers by their number."""
    if not reading.files.layers:
        return tensors_of(reading, rank.module or {})
    found: dict[str, FileTensor] = {}
    for index, files in sorted(reading.files.layers.items()):
        if tp not in files:
            raise PlanError(
                f"layer_{index:02d}-model_{tp:02d}-model_states.pt is missing",
                where=reading.run.tag,
                hint="copy the layer files of every rank",
            )
        found |= {f"{index}.{n}": t for n, t in tensors_of(reading, load(files[tp])).items()}
    return found


def named_alike(reading: Reading, ranks: Sequence[ModelRank], tp: int, *, asked: bool) -> Relation | None:
    """Join ranks by the names of Megatron's modules; None if their names are others.

    Args:
        reading: The files.
        ranks: Their states.
        tp: The tensor-parallel size.
        asked: Whether masters were asked for.

    Raises:
        PlanError: if masters were, which have no shapes here, or ranks do not fit together.
    """
    if reading.files.experts or "universal_checkpoint_info" in ranks[0].head:
        return None
    modules = [_module_of_rank(reading, ranks[min(t, len(ranks) - 1)], t) for t in range(tp)]
    if not _is_megatron([*modules[0]]):
        return None
    if asked:
        raise PlanError(
            "the fp32 masters of tensor-parallel ranks of Megatron's layers are not joined",
            where=reading.run.tag,
            hint="take the weights the model ran with (--weights model)",
        )
    if reading.weights == "master":
        reading.weights = "model"
        reading.note(
            "info", "the weights are those the model ran with: masters of these ranks are not joined"
        )
    shards = _joined(reading, modules)
    shards.check()
    return reading.graph.relation().compose(shards)


def _joined(reading: Reading, modules: Sequence[Mapping[str, FileTensor]]) -> Relation:
    """Relate the ranks' tensors to whole ones, by the names of Megatron's modules.

    Biases of row-parallel modules are added up where attention and MLP are beside each other (GPT-NeoX's
    ``gpt-j-residual``): every rank adds its own before the ranks' outputs are summed. Elsewhere they are one.

    Args:
        reading: The files; it takes in what is stored.
        modules: What each rank holds, by rank.

    Raises:
        PlanError: if ranks hold different tensors, or nothing tells whether biases are to be added up.
    """
    first = {n: Spec(t.shape, t.dtype.name) for n, t in modules[0].items()}
    for tp, module in enumerate(modules):
        if odd := sorted(module.keys() ^ first.keys()):
            raise PlanError(f"{odd[0]} is not on every tensor-parallel rank", where=reading.run.tag)
        for name, tensor in module.items():
            reading.graph.whole(f"mp_rank_{tp:02d}/{name}", tensor, f"mp_rank_{tp:02d}/{name}")
    summed = _are_summed(reading, modules)
    found: list[Relation] = []
    for name, spec in first.items():
        keys = [f"mp_rank_{tp:02d}/{name}" for tp in range(len(modules))]
        specs = [Spec(m[name].shape, m[name].dtype.name) for m in modules]
        if summed and _ROW_BIAS.fullmatch(name) is not None:
            names = [name, *(f"{name} of rank {tp}" for tp in range(1, len(modules)))]
            found += [
                merge_shards(n, [Shard(k, s)], Cut(), 1) for n, k, s in zip(names, keys, specs, strict=True)
            ]
            added: tuple[Term, ...] = tuple([Scaled(n, 1.0) for n in names[1:]])
            reading.terms[name] = added
            continue
        cut = _cut_of(name, spec, first)
        slices = [
            Shard(k, s, tp if cut.axis is not None else 0)
            for tp, (k, s) in enumerate(zip(keys, specs, strict=True))
        ]
        found.append(merge_shards(name, slices, cut, len(modules) if cut.axis is not None else 1))
    return Relation.union(found)


def _are_summed(reading: Reading, modules: Sequence[Mapping[str, FileTensor]]) -> bool:
    """Whether the ranks' biases after a sum over ranks are added up.

    Raises:
        PlanError: if the run does not say how its blocks are arranged.
    """
    biases = [n for n in modules[0] if _ROW_BIAS.fullmatch(n) is not None]
    if not biases or any(".self_attention." in n for n in biases):  # BLOOM adds them once
        return False
    read = neox_settings((reading.run.tag, reading.run.root))
    if read is not None:
        return bool(read[0]["gpt_j_residual"])
    raise PlanError(
        f"nothing tells whether the ranks' biases are to be added up ({biases[0]}): they are with "
        "gpt-j-residual, and one of them counts without",
        where=reading.run.tag,
        hint="put the run's YAML files into a folder configs beside the layer files, as GPT-NeoX 2 does",
    )
