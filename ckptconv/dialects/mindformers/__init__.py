"""MindFormers' ways of naming and packing the slots: whole tensors, no cuts.

Names: mindformers fd4deeb and 1.9, ``mindformers/models/*/convert_weight.py``, ``research/*/``,
``mindformers/utils/convert_utils.py`` (``qkv_concat_hf2mg``, ``ffn_concat_hf2mg``),
``mindformers/models/*/utils.py`` (``weight_mapping``), ``toolkit/weight_convert/deepseekv3``. The tables of
GPT-2, BLOOM, InternLM2 and of DeepSeek's first form follow older releases' converters.
"""

from __future__ import annotations

from collections.abc import Collection

from ckptconv.dialects.mindformers.core import CORE
from ckptconv.dialects.mindformers.glm import GLM
from ckptconv.dialects.mindformers.gpt import BLOOM, GPT2
from ckptconv.dialects.mindformers.llama import LEGACY
from ckptconv.dialects.mindformers.style import Style
from ckptconv.dialects.mindformers.words import told, unsaid, usual
from ckptconv.slots.entry import form, numbers

__all__ = [
    "CORE",
    "GLM",
    "LEGACY",
    "STYLES",
    "Style",
    "find_style",
    "style_for",
    "told",
    "unsaid",
    "usual",
]

STYLES = (LEGACY, GLM, CORE, GPT2, BLOOM)
_FAMILIES = {
    "chatglm": GLM,
    "glm": GLM,
    "qwen3": CORE,
    "qwen3_moe": CORE,
    "deepseek_v3": CORE,
    "gpt2": GPT2,
    "bloom": BLOOM,
}


def style_for(family: str) -> Style:
    """Return the style MindFormers' own converter writes a family in; that of Llama's relatives if unsure."""
    return _FAMILIES.get(family, LEGACY)


def find_style(names: Collection[str]) -> Style | None:
    """Return the style that knows most names; None if none knows the embedding and half of them."""
    forms = [numbers(name)[0] for name in names]

    def known(style: Style) -> int:
        there = {form(e.name) for e in style.entries}
        embed = any(e.pack == "embed" and e.name in names for e in style.entries)
        return sum(f in there for f in forms) if embed else 0

    best = max(STYLES, key=known)
    return best if 2 * known(best) > len(forms) else None
