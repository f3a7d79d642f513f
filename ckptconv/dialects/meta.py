"""Meta's own Llama names, which torchtitan took over and went on with.

Names: llama-models, ``models/llama3/model.py``; torchtitan 0.3, ``models/*/state_dict_adapter.py``.
The rows of query and key lie in pairs there (complex rotary embedding), but not in models that norm them:
torchtitan's Qwen3 and DeepSeek-V3 have Hugging Face's order.
"""

from __future__ import annotations

from ckptconv.dialects.base import Dialect, Line, for_mtp, module, norm, plain, prefixed
from ckptconv.facts.own import meta_facts
from ckptconv.slots import grouped, paired, stacked

__all__ = ["META"]

_Q, _K, _V = "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v"
_PAIRED, _HALVES = "!attn.q_norm !mla", "attn.q_norm !mla"
_EXPERT = "layers.*.moe.experts.{e}"
_ROUTED = "moe.routed_experts.inner_experts"


def _attention(inner: str) -> tuple[Line, ...]:
    return (
        *module(paired("heads", _Q), f"attention.{inner}wq", _PAIRED),
        *module(paired("kv_heads", _K), f"attention.{inner}wk", _PAIRED),
        *module(_Q, f"attention.{inner}wq", _HALVES),
        *module(_K, f"attention.{inner}wk", _HALVES),
        *module(_V, f"attention.{inner}wv", "!mla"),
    )


_LATENT = (
    *module(grouped("heads", "layers.*.mla.q.nope", "layers.*.mla.q.rope"), "attention.wq", "mla !mla.q_a"),
    *module("layers.*.mla.q_a", "attention.wq_a", "mla"),
    *norm("layers.*.mla.q_a_norm", "attention.q_norm.", when="mla"),
    *module(grouped("heads", "layers.*.mla.q_b.nope", "layers.*.mla.q_b.rope"), "attention.wq_b", "mla"),
    *module("layers.*.mla.kv_a", "attention.wkv_a", "mla"),
    *norm("layers.*.mla.kv_a_norm", "attention.kv_norm.", when="mla"),
    *module(grouped("heads", "layers.*.mla.kv_b.k", "layers.*.mla.kv_b.v"), "attention.wkv_b", "mla"),
    *module("layers.*.mla.o", "attention.wo", "mla"),
)


def _experts(module: str, names: tuple[str, str, str]) -> tuple[Line, ...]:
    return tuple(
        plain(stacked(f"{_EXPERT}.{part}"), f"{module}.{name}")
        for part, name in zip(("gate", "down", "up"), names, strict=True)
    )


_LAYER = (
    *norm("layers.*.attn_norm", "attention_norm."),
    *_attention(""),
    *_attention("qkv_linear."),
    *norm("layers.*.attn.q_norm", "attention.q_norm.", when="!mla"),
    *norm("layers.*.attn.k_norm", "attention.k_norm.", when="!mla"),
    *module("layers.*.attn.o", "attention.wo", "!mla"),
    *_LATENT,
    *norm("layers.*.mlp_norm", "ffn_norm."),
    *module("layers.*.mlp.gate", "feed_forward.w1"),
    *module("layers.*.mlp.up", "feed_forward.w3"),
    *module("layers.*.mlp.down", "feed_forward.w2"),
    plain("layers.*.moe.router", "moe.router.gate.weight"),
    plain("layers.*.moe.router_bias", "moe.expert_bias_E"),
    plain("layers.*.moe.router_bias", "moe.expert_bias"),
    *_experts(_ROUTED, ("w1_EFD", "w2_EDF", "w3_EFD")),
    *_experts("moe.experts", ("w1", "w2", "w3")),
    *module("layers.*.moe.shared.gate", "moe.shared_experts.w1"),
    *module("layers.*.moe.shared.down", "moe.shared_experts.w2"),
    *module("layers.*.moe.shared.up", "moe.shared_experts.w3"),
)
# torchtitan 0.3, models/deepseek_v3/model.py (MTPTransformerBlock): a layer with what goes before and after.
_AHEAD = (
    *for_mtp(_LAYER, "mtp_layers.*."),
    plain("mtp.*.enorm", "mtp_layers.*.enorm.weight"),
    plain("mtp.*.hnorm", "mtp_layers.*.hnorm.weight"),
    plain("mtp.*.eh_proj", "mtp_layers.*.eh_proj.weight"),
    plain("mtp.*.norm", "mtp_layers.*.mtp_norm.weight"),
)
META = Dialect(
    name="meta",
    library="Meta's Llama or torchtitan",
    lines=(
        plain("embed", "tok_embeddings.weight"),
        *prefixed(_LAYER, "layers.*."),
        *_AHEAD,
        *norm("final_norm", "norm."),
        plain("head", "output.weight"),
        plain("head", "lm_head.weight"),
    ),
    tells={
        "mla": r".*\.attention\.wkv_a\.weight",
        "mla.q_a": r".*\.attention\.wq_a\.weight",
        "attn.q_norm": r".*\.attention\.q_norm\.weight",
    },
    ignored=(r"rope\.freqs", r"freqs_cis", r".*\.tokens_per_expert(_E)?", r"rope_cache"),
    ranks=False,
    facts=meta_facts,
    bare=lambda name: name.removeprefix("model."),
)
