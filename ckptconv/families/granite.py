"""Granite, dense and with experts: Llama, with factors on embedding, residuals, scores and logits.

The experts lie together (transformers 5.23, ``modeling_granitemoe.py``).
"""

from collections.abc import Iterator
from dataclasses import replace

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import BIASED_MLP, EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.template import decoder
from ckptconv.slots import concat, one, stacked

_ATTENTION = attention("attention_bias", "attention_bias")
FACTORS = {
    name: f"{name}?"
    for name in ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
}


_ROUNDING = 1e-6  # of a factor that a config states in decimals


def factors(config: Config, *, scale: float | None = 1.0) -> Iterator[str]:
    """Yield the factors of a config that are not what models without them compute.

    Args:
        config: The content of config.json.
        scale: That of scores, where the config does not say it; None for the usual one.
    """
    wide = config.get("head_dim") or config.get("hidden_size", 0) / (config.get("num_attention_heads") or 1)
    own = config.get("attention_multiplier", scale)
    if own is not None and abs(own * own * wide - 1) > _ROUNDING:
        yield f"attention_multiplier ({own})"
    for name in FACTORS:
        if name != "attention_multiplier" and config.get(name, 1.0) != 1.0:
            yield f"{name} ({config[name]})"


_ASSUMED = {"attention_bias": False, "rms_norm_eps": 1e-6}
DENSE = Family(
    name="granite",
    model_types=("granite",),
    entries=(EMBED, *_ATTENTION, *NORMS, *BIASED_MLP, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    beyond=factors,
    template=decoder(
        "GraniteForCausalLM",
        {**FACTORS, "attention_bias": "qkv_bias o_bias", "mlp_bias": "linear_bias"},
        without=("head_dim",),
        assumed={**_ASSUMED, "mlp_bias": False},
        by_name=True,
    ),
)
_MOE, _E = "model.layers.*.block_sparse_moe", "layers.*.moe.experts.{e}"
_SHARED = (
    one(
        concat("layers.*.moe.shared.gate", "layers.*.moe.shared.up"),
        "model.layers.*.shared_mlp.input_linear.weight",
    ),
    one("layers.*.moe.shared.down", "model.layers.*.shared_mlp.output_linear.weight"),
)
MOE = Family(
    name="granitemoe",
    model_types=("granitemoe", "granitemoeshared"),
    entries=(
        EMBED,
        *_ATTENTION,
        *NORMS,
        one("layers.*.moe.router", f"{_MOE}.router.layer.weight"),
        one(stacked(concat(f"{_E}.gate", f"{_E}.up")), f"{_MOE}.input_linear.weight"),
        one(stacked(f"{_E}.down"), f"{_MOE}.output_linear.weight"),
        *(replace(entry, when="shared_intermediate_size") for entry in _SHARED),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=lambda config: {"shared_inner": config.get("shared_intermediate_size") or 0},
    beyond=factors,
    template=decoder(
        "GraniteMoeForCausalLM",
        {
            **FACTORS,
            "attention_bias": "qkv_bias o_bias",
            "num_local_experts": "experts",
            "num_experts_per_tok": "topk",
            "intermediate_size": "expert_inner",
        },
        without=("head_dim",),
        fixed={"norm_topk": True, "score_function": "softmax", "dense_layers": []},
        assumed=_ASSUMED,
        by_name=True,
    ),
)
