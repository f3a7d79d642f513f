"""OPT, XGLM and BioGPT: one decoder of fairseq's; two rows of positions come before the first.

transformers 5.23, ``modeling_opt.py``, ``modeling_xglm.py``, ``modeling_biogpt.py``.
"""

from ckptconv.families.base import Config, Family
from ckptconv.families.gpt_neox import ungrouped
from ckptconv.families.template import decoder
from ckptconv.slots import Entry, linear, one

_KEYS = {"activation_function": "activation"}
_WITHOUT = ("rms_norm_eps", "head_dim", "num_key_value_heads", "hidden_act", "rope_theta", "rope_scaling")
_FIXED = {
    "norm_kind": "LayerNorm",
    "gated": False,
    "linear_bias": True,
    "qkv_bias": True,
    "o_bias": True,
    "grouped": False,
    "position": "learned_absolute",
}


def _layers(at: str, bias: str | bool = True) -> tuple[Entry, ...]:
    own = f"{at}.layers.*"
    return (
        *(e for p in "qkv" for e in linear(f"layers.*.attn.{p}", f"{own}.self_attn.{p}_proj", bias=bias)),
        *linear("layers.*.attn.o", f"{own}.self_attn.out_proj", bias=bias),
        *linear("layers.*.attn_norm", f"{own}.self_attn_layer_norm", bias=True),
        *linear("layers.*.mlp.up", f"{own}.fc1", bias=bias),
        *linear("layers.*.mlp.down", f"{own}.fc2", bias=bias),
        *linear("layers.*.mlp_norm", f"{own}.final_layer_norm", bias=True),
    )


def _positions(config: Config) -> dict[str, int]:
    return {**ungrouped(config), "positions": (config.get("max_position_embeddings") or 0) + 2}


OPT = Family(
    name="opt",
    model_types=("opt",),
    entries=(
        one("embed", "model.decoder.embed_tokens.weight"),
        one("positions", "model.decoder.embed_positions.weight"),
        *_layers("model.decoder", "enable_bias"),
        *(
            Entry(f"model.decoder.final_layer_norm.{end}", slot, "do_layer_norm_before")
            for end, slot in (("weight", "final_norm"), ("bias", "final_norm.bias"))
        ),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": True, "enable_bias": True, "do_layer_norm_before": True},
    ignored=(r"lm_head\.weight",),
    sizes=_positions,
    template=decoder("OPTForCausalLM", _KEYS, without=_WITHOUT, fixed=_FIXED, by_name=True),
)


def _scaled(config: Config) -> list[str]:
    scaled = (
        [] if config.get("scale_embedding") is False else ["embeddings scaled by the root of their width"]
    )
    return [*scaled, "positions that begin at 2"]


XGLM = Family(
    name="xglm",
    model_types=("xglm",),
    entries=(
        one("embed", "model.embed_tokens.weight"),
        *_layers("model"),
        *linear("final_norm", "model.layer_norm", bias=True),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": True},
    ignored=(r"lm_head\.weight", r"model\.embed_positions\.weights"),
    sizes=ungrouped,
    beyond=_scaled,
    template=decoder(
        "XGLMForCausalLM", _KEYS, without=_WITHOUT, fixed={**_FIXED, "position": "sinusoidal"}, by_name=True
    ),
)
BIOGPT = Family(
    name="biogpt",
    model_types=("biogpt",),
    entries=(
        one("embed", "biogpt.embed_tokens.weight"),
        one("positions", "biogpt.embed_positions.weight"),
        *_layers("biogpt"),
        *linear("final_norm", "biogpt.layer_norm", bias=True),
        one("head", "output_projection.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": True},
    ignored=(r"output_projection\.weight",),
    sizes=_positions,
    beyond=_scaled,
    template=decoder(
        "BioGptForCausalLM",
        {"hidden_act": "activation"},
        without=_WITHOUT[:3] + _WITHOUT[4:],
        fixed=_FIXED,
        by_name=True,
    ),
)
