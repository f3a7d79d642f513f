"""Tell whether an output head that the config ties to the embedding still is what the embedding is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.families import Family
from ckptconv.places.files import SourceFiles
from ckptconv.plans.assemble import plan_of
from ckptconv.plans.casting import cast_chains
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import OutFile
from ckptconv.relations import Relation

__all__ = ["ends", "has_drifted"]

_TILE: Final = 1 << 20
_EMBEDS: Final = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_HEADS: Final = ("lm_head.weight", "embed_out.weight")


def ends(
    relation: Relation, family: Family | None, config: Mapping[str, Any] | None
) -> tuple[str | None, str | None, bool | None]:
    """Return the names of embedding and head, and whether the config ties them; None where it is not known.

    Args:
        relation: Its right side are the model's tensors.
        family: The architecture, if it has a table.
        config: The content of config.json.
    """
    if family is not None and (embed := family.name_of("embed")) is not None:
        return embed, family.name_of("head"), family.tied(config) if config is not None else None
    says = config.get("tie_word_embeddings") if config is not None else None
    embeds = [n for n in relation.right if n.endswith(_EMBEDS)]
    head = next((n for n in _HEADS if n in relation.right), None)
    return embeds[0] if len(embeds) == 1 else None, head, says if isinstance(says, bool) else None


def has_drifted(
    checkpoint: Checkpoint, relation: Relation, via: Mapping[str, DType], head: str, embed: str
) -> bool:
    """Whether two tensors of a checkpoint hold other values; they are read up to the first that differs.

    Training with LoRA on new tokens, or FSDP2, unties what a config goes on calling tied.

    Args:
        checkpoint: The source.
        relation: Its stored tensors to the model's.
        via: Dtypes these are rounded to on the way.
        head: The one.
        embed: The other.
    """
    specs = [relation.right[n] for n in (head, embed)]
    if specs[0] != specs[1]:
        return specs[0].shape != specs[1].shape
    dtype = dtype_named(specs[0].dtype)
    size = specs[0].numel * dtype.itemsize
    both = relation.select([head, embed])
    casts = cast_chains(checkpoint, both, {n: d for n, d in via.items() if n in (head, embed)})
    files = [
        OutFile(n, "safetensors", FileLayout(size, (), (Placed(n, dtype, specs[0].shape, 0),)))
        for n in (head, embed)
    ]
    plan = plan_of(checkpoint, both, casts, files, {})
    pairs = pairs_by_tensor(both)
    with SourceFiles(plan.inputs) as sources:
        one, two = (Filler(plan, file, sources, pairs) for file in files)
        left, right = Buffers(), Buffers()
        for lo in range(0, size, _TILE):
            hi = min(lo + _TILE, size)
            if (one.fill(lo, hi, left)[0] != two.fill(lo, hi, right)[0]).any():
                return True
    return False
