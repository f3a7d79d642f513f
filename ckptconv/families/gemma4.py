"""Gemma 4 (text): full attention with heads of another size, inputs for each layer, experts beside the MLP.

transformers 5.23, ``modeling_gemma4.py`` and ``configuration_gemma4.py``.
"""

from dataclasses import replace

from ckptconv.families.base import Config, Family, dims
from ckptconv.families.gemma import GEMMA2
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP
from ckptconv.families.template import decoder
from ckptconv.slots import Entry, concat, linear, one, stacked

_AT, _E = "model.layers.*", "layers.*.moe.experts.{e}"
_FULL = "full_attention"
_NORMS = tuple(entry for entry in GEMMA2.entries if entry.slots[0].endswith("_norm") and "*" in entry.name)


def _attention(block: str) -> tuple[Entry, ...]:
    """Declare the attention of a kind of layer; layers that share keys and values have none of their own."""
    made: list[Entry] = []
    for part in ("q", "k", "v", "o"):
        made += linear(f"layers.*.{block}.{part}", f"{_AT}.self_attn.{part}_proj", bias="attention_bias")
    for part in ("q_norm", "k_norm"):
        made.append(one(f"layers.*.{block}.{part}", f"{_AT}.self_attn.{part}.weight"))
    return tuple(
        replace(
            entry,
            when=f"{block} {entry.when or ''}".strip(),
            optional=any(f".{block}.{part}" in entry.slots[0] for part in "kv"),
        )
        for entry in made
    )


def _kinds(config: Config) -> list[str]:
    layers = dims(config).get("layers", 0)
    types = config.get("layer_types") or []
    rest = "mlp ple" + (" moe" if config.get("enable_moe_block") else "")
    return [f"{'wide' if types[i : i + 1] == [_FULL] else 'attn'} {rest}" for i in range(layers)]


def _sizes(config: Config) -> dict[str, int]:
    sizes = dims(config)
    layers = config.get("layer_types") or []
    own = config.get("per_layer_config") or {}
    first = own.get(str(layers.index(_FULL)), {}) if _FULL in layers and isinstance(own, dict) else {}
    shared = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v", True) else None
    each = config.get("hidden_size_per_layer_input") or 0
    return {
        "wide_dim": first.get("head_dim") or config.get("global_head_dim") or 512,
        "wide_kv": first.get("num_key_value_heads") or shared or sizes.get("kv_heads", 0),
        "ple": each,
        "ple_vocab": config.get("vocab_size_per_layer_input") or sizes.get("vocab", 0),
    }


_EXPERTS = (
    one("layers.*.moe.router", f"{_AT}.router.proj.weight"),
    one("layers.*.moe.router_scale", f"{_AT}.router.scale"),
    one("layers.*.moe.expert_scale", f"{_AT}.router.per_expert_scale"),
    one(stacked(concat(f"{_E}.gate", f"{_E}.up")), f"{_AT}.experts.gate_up_proj"),
    one(stacked(f"{_E}.down"), f"{_AT}.experts.down_proj"),
    one("layers.*.moe.pre_norm", f"{_AT}.pre_feedforward_layernorm_2.weight"),
    one("layers.*.moe.post_norm", f"{_AT}.post_feedforward_layernorm_2.weight"),
    one("layers.*.moe.mlp_post_norm", f"{_AT}.post_feedforward_layernorm_1.weight"),
)
_INPUTS = (
    one("ple_embed", "model.embed_tokens_per_layer.weight"),
    one("ple_proj", "model.per_layer_model_projection.weight"),
    one("ple_norm", "model.per_layer_projection_norm.weight"),
    one("layers.*.ple.gate", f"{_AT}.per_layer_input_gate.weight"),
    one("layers.*.ple.proj", f"{_AT}.per_layer_projection.weight"),
    one("layers.*.ple.norm", f"{_AT}.post_per_layer_input_norm.weight"),
)
FAMILY = Family(
    name="gemma4_text",
    model_types=("gemma4_text",),
    entries=(
        EMBED,
        *_attention("attn"),
        *_attention("wide"),
        *_NORMS,
        *MLP,
        *_EXPERTS,
        *(replace(entry, when="hidden_size_per_layer_input") for entry in _INPUTS),
        one("layers.*.ple.scalar", f"{_AT}.layer_scalar"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": True, "head_dim": 256},
    ignored=IGNORED,
    sizes=_sizes,
    kinds=_kinds,
    slots={
        "layers.*.wide.q": "heads*wide_dim,hidden",
        "layers.*.wide.k": "wide_kv*wide_dim,hidden",
        "layers.*.wide.v": "wide_kv*wide_dim,hidden",
        "layers.*.wide.o": "hidden,heads*wide_dim",
        "layers.*.wide.q_norm": "wide_dim",
        "layers.*.wide.k_norm": "wide_dim",
        "layers.*.moe.router_scale": "hidden",
        "layers.*.moe.expert_scale": "experts",
        "layers.*.moe.pre_norm": "hidden",
        "layers.*.moe.post_norm": "hidden",
        "layers.*.moe.mlp_post_norm": "hidden",
        "ple_embed": "ple_vocab,layers*ple",
        "ple_proj": "layers*ple,hidden",
        "ple_norm": "ple",
        "layers.*.ple.gate": "ple,hidden",
        "layers.*.ple.proj": "hidden,ple",
        "layers.*.ple.norm": "hidden",
        "layers.*.ple.scalar": "1",
    },
    template=decoder("Gemma4ForCausalLM", without=("hidden_act",), by_name=True),
)
