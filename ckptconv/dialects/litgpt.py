"""litgpt's names: litgpt 0.5, ``litgpt/scripts/convert_lit_checkpoint.py`` and ``convert_hf_checkpoint.py``.

Query, key and value are one tensor: one after the other since 0.5 (``attn.qkv``), by query group before
(``attn.attn``).
"""

from __future__ import annotations

from ckptconv.dialects.base import Dialect, Line, module, norm, plain, prefixed
from ckptconv.facts.litgpt import litgpt_facts
from ckptconv.slots import concat, grouped

__all__ = ["LITGPT"]

_QKV = ("layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")
_EXPERT = "layers.*.moe.experts.{e}"


LITGPT = Dialect(
    name="litgpt",
    library="litgpt",
    lines=(
        plain("embed", "transformer.wte.weight"),
        *prefixed(
            (
                *norm("layers.*.attn_norm", "norm_1."),
                *module(concat(*_QKV), "attn.qkv"),
                *module(grouped("kv_heads", *_QKV), "attn.attn"),
                *norm("layers.*.attn.q_norm", "attn.norm_q."),
                *norm("layers.*.attn.k_norm", "attn.norm_k."),
                *module("layers.*.attn.o", "attn.proj"),
                *norm("layers.*.attn_post_norm", "post_attention_norm."),
                *norm("layers.*.mlp_norm", "norm_2."),
                *norm("layers.*.mlp_post_norm", "post_mlp_norm."),
                *module("layers.*.mlp.gate", "mlp.fc_1"),
                *module("layers.*.mlp.up", "mlp.fc_2"),
                *module("layers.*.mlp.up", "mlp.fc"),
                *module("layers.*.mlp.down", "mlp.proj"),
                plain("layers.*.moe.router", "mlp.gate.weight"),
                *module(f"{_EXPERT}.gate", "mlp.experts.{e}.fc_1"),
                *module(f"{_EXPERT}.up", "mlp.experts.{e}.fc_2"),
                *module(f"{_EXPERT}.down", "mlp.experts.{e}.proj"),
            ),
            "transformer.h.*.",
        ),
        *norm("final_norm", "transformer.ln_f."),
        plain("head", "lm_head.weight"),
        Line("lm_head.bias", "head.bias", None, True),
    ),
    ranks=False,
    facts=litgpt_facts,
)
