"""Qwen3-Next: three layers of gated delta nets to one of attention whose output has a gate, and experts.

The norms multiply by one plus the stored weight, but for that of a delta net (transformers 5.12,
``modeling_qwen3_next.py``). In the file a query head and its gate follow each other.
"""

from __future__ import annotations

from ckptconv.families.base import Config, Family, dims, is_sparse
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, gated
from ckptconv.families.moe import PLAIN_ROUTING, ROUTED
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import Entry, concat, grouped, linear, one, predicting

_AT = "model.layers.*"
_D = "layers.*.gdn"


def mixers(config: Config) -> tuple[str, ...]:
    """Return of each layer ``attn`` or ``gdn``, and of those for multi-token prediction ``attn``."""
    sizes = dims(config)
    layers, every = sizes.get("layers", 0), config.get("full_attention_interval") or 4
    types = config.get("layer_types") or ["full" if (i + 1) % every == 0 else "linear" for i in range(layers)]
    found = ["attn" if str(kind).startswith("full") else "gdn" for kind in types]
    return (*found, *("attn" for _ in range(sizes.get("mtp", 0))))


def kinds(config: Config) -> tuple[str, ...]:
    """Return what each layer is."""
    return tuple(f"{m} {'moe' if is_sparse(config, i) else 'mlp'}" for i, m in enumerate(mixers(config)))


GATED_ATTENTION = (
    *linear(
        grouped("heads", "layers.*.attn.q", "layers.*.attn.gate"),
        f"{_AT}.self_attn.q_proj",
        bias="attention_bias",
    ),
    *linear("layers.*.attn.k", f"{_AT}.self_attn.k_proj", bias="attention_bias"),
    *linear("layers.*.attn.v", f"{_AT}.self_attn.v_proj", bias="attention_bias"),
    *linear("layers.*.attn.o", f"{_AT}.self_attn.o_proj", bias="attention_bias"),
    *QK_NORMS,
)


def delta_net(*projections: Entry) -> tuple[Entry, ...]:
    """Declare a gated delta net of these projections."""
    at = f"{_AT}.linear_attn"
    return (
        *projections,
        one(concat(f"{_D}.conv.q", f"{_D}.conv.k", f"{_D}.conv.v"), f"{at}.conv1d.weight"),
        one(f"{_D}.a_log", f"{at}.A_log"),
        one(f"{_D}.dt_bias", f"{at}.dt_bias"),
        one(f"{_D}.norm", f"{at}.norm.weight"),
        one(f"{_D}.o", f"{at}.out_proj.weight"),
    )


SHARED = (
    *gated("layers.*.moe.shared", f"{_AT}.mlp.shared_expert"),
    one("layers.*.moe.shared_gate", f"{_AT}.mlp.shared_expert_gate.weight"),
)
DELTA_NET = delta_net(
    one(
        grouped("delta_keys", f"{_D}.q", f"{_D}.k", f"{_D}.v", f"{_D}.z"),
        f"{_AT}.linear_attn.in_proj_qkvz.weight",
    ),
    one(grouped("delta_keys", f"{_D}.beta", f"{_D}.alpha"), f"{_AT}.linear_attn.in_proj_ba.weight"),
)
# One layer, whose projection has no number (vLLM 0.11, ``models/qwen3_next_mtp.py``).
MTP_ENDS = (
    one("mtp.0.enorm", "mtp.pre_fc_norm_embedding.weight", when="mtp"),
    one("mtp.0.hnorm", "mtp.pre_fc_norm_hidden.weight", when="mtp"),
    one("mtp.0.eh_proj", "mtp.fc.weight", when="mtp"),
    one("mtp.0.norm", "mtp.norm.weight", when="mtp"),
)


def with_mtp(layer: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Return the entries of a layer, and of one like it, with attention, for multi-token prediction."""
    plain = [e for e in layer if not e.slots[0].startswith(_D)]
    return (*layer, *predicting(plain, f"{_AT}.", "mtp.layers.*."), *MTP_ENDS)


DELTA_KEYS = {
    "linear_num_key_heads": "delta_keys",
    "linear_num_value_heads": "delta_values",
    "linear_key_head_dim": "delta_key",
    "linear_value_head_dim": "delta_value",
    "linear_conv_kernel_dim": "delta_kernel",
    "layer_types": "mixer_types",
    "partial_rotary_factor": "partial_rotary",
    "mtp_num_hidden_layers": "mtp?",
    "attention_bias": "qkv_bias o_bias",
}
SPARSE_KEYS = {
    "moe_intermediate_size": "expert_inner",
    "shared_expert_intermediate_size": "shared_inner",
    "num_experts": "experts",
    "num_experts_per_tok": "topk",
}
DELTA_FIXED = {"qk_norm": True, "output_gate": True}
DELTA_ASSUMED = {
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "partial_rotary_factor": 0.25,
    "mtp_num_hidden_layers": 0,
    "head_dim": 256,
}
FLAGS = {"tie_word_embeddings": False, "decoder_sparse_step": 1, "head_dim": 256}
FAMILY = Family(
    name="qwen3_next",
    model_types=("qwen3_next",),
    entries=(
        EMBED,
        *with_mtp((*GATED_ATTENTION, *DELTA_NET, *NORMS, *MLP, *ROUTED, *SHARED)),
        *ENDS,
    ),
    flags=FLAGS,
    ignored=IGNORED,
    kinds=kinds,
    zero_centered=True,
    plain_norms=("layers.*.gdn.norm",),
    template=decoder(
        "Qwen3NextForCausalLM",
        {**DELTA_KEYS, **SPARSE_KEYS, "norm_topk_prob": "norm_topk", "mlp_only_layers": "dense_layers"},
        fixed={**DELTA_FIXED, "shared_gate": True, **PLAIN_ROUTING},
        literals={"decoder_sparse_step": 1},
        assumed={**DELTA_ASSUMED, "norm_topk_prob": True},
        like=("qwen3_5_text",),
    ),
)
