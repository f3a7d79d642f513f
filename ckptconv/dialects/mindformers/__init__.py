"""MindFormers' ways of naming and packing the slots: whole tensors, no cuts.

Names: mindformers fd4deeb and 1.9, ``mindformers/models/*/convert_weight.py``, ``research/*/``,
``mindformers/utils/convert_utils.py`` (``qkv_concat_hf2mg``, ``ffn_concat_hf2mg``),
``mindformers/models/*/utils.py`` (``weight_mapping``), ``toolkit/weight_convert/deepseekv3``. The tables of
GPT-2, BLOOM, InternLM2 and of DeepSeek's first form follow older releases' converters.
"""

from __future__ import annotations

from collections.abc import Collection

from ckptconv.dialects.base import Dialect
from ckptconv.dialects.factors import weight_of_factor
from ckptconv.dialects.mindformers.core import CORE
from ckptconv.dialects.mindformers.glm import GLM
from ckptconv.dialects.mindformers.gpt import BLOOM, GPT2
from ckptconv.dialects.mindformers.llama import LEGACY
from ckptconv.slots.entry import form, numbers

__all__ = ["BLOOM", "CORE", "GLM", "GPT2", "LEGACY", "MINDFORMERS", "dialect_for", "dialect_of"]

MINDFORMERS = (LEGACY, GLM, CORE, GPT2, BLOOM)
_FAMILIES = {
    "chatglm": GLM,
    "glm": GLM,
    "qwen3": CORE,
    "qwen3_moe": CORE,
    "deepseek_v3": CORE,
    "gpt2": GPT2,
    "bloom": BLOOM,
}


def dialect_for(family: str) -> Dialect:
    """Return the dialect MindFormers' own converter writes a family in; Llama's relatives' one if unsure."""
    return _FAMILIES.get(family, LEGACY)


def dialect_of(names: Collection[str]) -> Dialect | None:
    """Return the dialect that knows most names; None if none knows the embedding and half of them.

    A LoRA adapter may be saved without the weights, so without the embedding too.
    """
    weights = {name: weight_of_factor(name) for name in names}
    forms = [numbers(weight or name)[0] for name, weight in weights.items()]
    adapter = any(weight is not None for weight in weights.values())

    def known(dialect: Dialect) -> int:
        there = {form(line.name) for line in dialect.lines}
        embed = adapter or any(line.pack == "embed" and line.name in names for line in dialect.lines)
        return sum(f in there for f in forms) if embed else 0

    best = max(MINDFORMERS, key=known)
    return best if 2 * known(best) > len(forms) else None
