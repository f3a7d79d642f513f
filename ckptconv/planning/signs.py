"""Tell producers by the names their tensors have, where no table reads them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from ckptconv.records import dataclass

__all__ = ["RENAME", "SIGNS", "Sign", "sign_of"]

RENAME: Final = "--rename takes a file of 'old = new' rules"
_EXPORT: Final = (
    "renaming alone is not enough: rows of query and key lie in another order (rotary pairs); export the "
    "model to Hugging Face's format with the library that trained it, and convert that"
)
LORA: Final = (
    "say what is to become of the adapter: --lora merge adds it to its weights, --lora adapter writes it "
    "alone"
)


@dataclass(frozen=True, slots=True)
class Sign:
    """Tell a producer by its names.

    Attributes:
        pattern: What one of its names looks like.
        producer: Who writes them.
        hint: What to do.
    """

    pattern: re.Pattern[str]
    producer: str
    hint: str


def _sign(pattern: str, producer: str, hint: str) -> Sign:
    return Sign(re.compile(pattern), producer, hint)


# Names as these write them: peft 0.21 (peft_model.py); torchtitan 0.2 (models/llama3/model) and llama's own
# model.py; torchtune 0.6 (modules/transformer.py); litgpt 0.5 (model.py); GPT-NeoX 2.0 (layer files and
# ``sequential``); megatron-core 0.16 and Megatron-LM's legacy model; OLMo-core 2.3 (nn/transformer).
SIGNS: Final = (
    _sign(
        r"(?:.+\.)?(?:lora_(?:embedding_)?[AB](?:\..+)?|base_model\.model\..+)",
        "a model that PEFT wrapped",
        LORA,
    ),
    _sign(
        r"(?:.+\.)?layers\.\d+\.(?:attention\.w[qkvo]|feed_forward\.w[123]|attention_norm|ffn_norm)\..+",
        "torchtitan or Meta's own Llama",
        _EXPORT,
    ),
    _sign(
        r"(?:.+\.)?layers\.\d+\.(?:attn\.(?:q|k|v|output)_proj|mlp\.w[123]|(?:sa|mlp)_norm\.scale).*",
        "torchtune",
        _EXPORT,
    ),
    _sign(
        r"(?:.+\.)?h\.\d+\.(?:attn\.(?:qkv|attn|proj)|mlp\.(?:fc_1|fc_2|fc|proj)|norm_[12])\..+",
        "litgpt",
        "query, key and value are fused there: litgpt convert_from_litgpt writes Hugging Face's names",
    ),
    _sign(
        r"(?:sequential\.)?\d+\.(?:attention|mlp|(?:input|post_attention)_layernorm|word_embeddings)\..+",
        "GPT-NeoX's pipeline layers",
        "export the model with its tools/ckpts/convert_neox_to_hf.py, and convert that",
    ),
    _sign(
        r"(?:.+\.)?(?:decoder|encoder|transformer)\.layers\.\d+\.(?:self_attention|mlp)\."
        r"(?:linear_\w+|query_key_value|dense\w*)\..+",
        "Megatron",
        "give the run's folder, whose arguments say how its tensors are packed, or export it with the "
        "library that trained it",
    ),
    _sign(
        r"(?:.+\.)?blocks\.\d+\.(?:attention\.w_(?:q|k|v|out)|feed_forward\.w[123]|attention_norm)\..+",
        "OLMo-core",
        "export the model with OLMo-core's convert_checkpoint_to_hf, and convert that",
    ),
    _sign(
        r"(?:optim|optimizer|optimizer_state|exp_avg(?:_sq)?)\b.*|.+\.(?:exp_avg(?:_sq)?|momentum_buffer)",
        "an optimizer, whose states are no weights",
        "name the file or the key of the weights",
    ),
    _sign(
        r"(?:_forward_module|pretrained_model|0\.auto_model)\..+|model\.(?:model|transformer|lm_head)\..+",
        "a model inside another module",
        f"{RENAME}, for example 'model.* = *'",
    ),
)


def sign_of(names: Collection[str]) -> tuple[Sign, str] | None:
    """Return the producer whose names most of these are, with one of them; None if none is known to."""
    best: tuple[int, Sign, str] | None = None
    for sign in SIGNS:
        like = [n for n in names if sign.pattern.fullmatch(n)]
        if like and (best is None or len(like) > best[0]):
            best = (len(like), sign, like[0])
    return None if best is None else best[1:]
