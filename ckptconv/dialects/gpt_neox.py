"""GPT-NeoX's names: EleutherAI/gpt-neox ea7aefd8, ``tools/ckpts/convert_neox_to_hf.py``.

A pipeline's layers are counted with the embedding as 0 and a step without weights as 1, so that block 0 is
layer 2; in one stage all of them lie under ``sequential``. Its own architecture, with the names of
TransformerEngine too, and Llama's, whose up projection lies before the gate.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from ckptconv.dialects.base import Dialect, Line, module, norm, plain, prefixed
from ckptconv.facts.neox import neox_facts
from ckptconv.relations import Spec
from ckptconv.slots import concat, grouped

__all__ = ["GPT_NEOX"]

_LAYER: Final = re.compile(r"(?:module\.)?(?:sequential\.)?(\d+)\.(.+)")
_BEFORE: Final = 2
# Of fewer keys than queries each head's rows hold a part (``transformer.py``, ``gqa_project``).
_QKV = grouped("heads", "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")
_END: Final = ("norm.", "final_linear.", "word_embeddings.")
_UP: Final = re.compile(r"(sequential\.\d+\.mlp\.)linear1\.weight")


def _counted(name: str) -> str:
    """Return a name with its block counted from 0."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    number, rest = int(match[1]), match[2]
    return rest if rest.startswith(_END) or number < _BEFORE else f"sequential.{number - _BEFORE}.{rest}"


def _gates(tensors: Mapping[str, Spec], names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield up projections that hold a gate as well: twice the rows the down projection has columns."""
    for name, spec in tensors.items():
        if (match := _UP.fullmatch(name)) is not None:
            down = tensors.get(f"{match[1]}linear2.weight")
            if down is not None and spec.shape[0] == 2 * down.shape[-1]:
                yield name, "mlp.gate"


_NORM = ("scale", "bias")  # of RMSNorm, which has no bias
GPT_NEOX = Dialect(
    name="gpt-neox",
    library="GPT-NeoX",
    lines=(
        plain("embed", "word_embeddings.weight"),
        *prefixed(
            (
                *norm("layers.*.attn_norm", "input_layernorm."),
                *norm("layers.*.attn_norm", "input_layernorm.", names=_NORM),
                *module(_QKV, "attention.query_key_value"),
                *module(_QKV, "attention.qkv"),
                *module("layers.*.attn.o", "attention.dense"),
                *module("layers.*.attn.o", "attention.proj"),
                *norm("layers.*.mlp_norm", "post_attention_layernorm."),
                *norm("layers.*.mlp_norm", "post_attention_layernorm.", names=_NORM),
                *norm("layers.*.mlp_norm", "mlp.layer_norm_"),
                *module("layers.*.mlp.up", "mlp.dense_h_to_4h"),
                *module("layers.*.mlp.down", "mlp.dense_4h_to_h"),
                *module(concat("layers.*.mlp.up", "layers.*.mlp.gate"), "mlp.linear1", "mlp.gate"),
                *module("layers.*.mlp.up", "mlp.linear1", "!mlp.gate"),
                *module("layers.*.mlp.down", "mlp.linear2"),
                *module("layers.*.mlp.gate", "mlp.w1"),
                *module("layers.*.mlp.up", "mlp.w3"),
                *module("layers.*.mlp.down", "mlp.w2"),
                plain("layers.*.mlp.up", "mlp.fc1_weight"),
                Line("mlp.fc1_bias", "layers.*.mlp.up.bias", None, True),
                plain("layers.*.mlp.down", "mlp.fc2_weight"),
                Line("mlp.fc2_bias", "layers.*.mlp.down.bias", None, True),
            ),
            "sequential.*.",
        ),
        *norm("final_norm", "norm."),
        *norm("final_norm", "norm.", names=_NORM),
        plain("head", "final_linear.weight"),
    ),
    shapes=_gates,
    reads=("mlp.gate",),
    ignored=(
        r"sequential\.\d+\.attention\.(rotary_emb\.inv_freq|bias|masked_bias)",
        r".*\._extra_state",
    ),
    ranks=False,
    facts=neox_facts,
    bare=_counted,
)
