"""Qwen 1 (code on the hub): GPT-2's names; its config counts gate and up together as the MLP's width."""

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import gated
from ckptconv.families.phi3 import QKV
from ckptconv.families.template import decoder
from ckptconv.slots import linear, one

_LAYER = "transformer.h.*"


def _sizes(config: Config) -> Mapping[str, int]:
    width, head = config.get("intermediate_size"), config.get("kv_channels")
    said = {"inner": width // 2 if isinstance(width, int) else None, "head_dim": head}
    return {name: value for name, value in said.items() if isinstance(value, int)}


FAMILY = Family(
    name="qwen",
    model_types=("qwen",),
    entries=(
        one("embed", "transformer.wte.weight"),
        one("layers.*.attn_norm", f"{_LAYER}.ln_1.weight"),
        *linear(QKV, f"{_LAYER}.attn.c_attn", bias=True),
        *linear("layers.*.attn.o", f"{_LAYER}.attn.c_proj", bias="!no_bias"),
        one("layers.*.mlp_norm", f"{_LAYER}.ln_2.weight"),
        # The activation is on w2 (modeling_qwen.py of Qwen/Qwen-7B, QWenMLP).
        *gated("layers.*.mlp", f"{_LAYER}.mlp", "w2 w1 c_proj", bias="!no_bias"),
        one("final_norm", "transformer.ln_f.weight"),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": False, "no_bias": True},
    ignored=(r"transformer\.rotary_emb\.inv_freq", r"lm_head\.weight"),
    sizes=_sizes,
    template=decoder(
        "QWenLMHeadModel",
        {
            "intermediate_size": "gate_and_up",
            "kv_channels": "head_dim",
            "layer_norm_epsilon": "norm_eps",
            "rotary_emb_base": "rope_theta",
            "rotary_pct": "partial_rotary",
            "no_bias": "no_bias",
            "seq_length": "positions",
        },
        without=(
            "num_key_value_heads",
            "head_dim",
            "hidden_act",
            "rms_norm_eps",
            "rope_theta",
            "rope_scaling",
        ),
        fixed={"grouped": False, "activation": "silu", "qkv_bias": True, "rope_scaling": None},
        assumed={"rotary_emb_base": 10000, "rotary_pct": 1.0, "no_bias": True},
        like=("qwen2",),
    ),
)
