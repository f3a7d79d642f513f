"""Mamba 2, alone (``mamba2``) and taking turns with attention (``bamba``).

transformers 5.23, ``modeling_mamba2.py`` and ``modeling_bamba.py``: the input projection is gate, x, B, C and
time step, one after the other, the convolution x, B and C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import EMBED, IGNORED, attention, gated
from ckptconv.slots import Entry, concat, linear, one

_M = "layers.*.mamba"
HYBRID_KEYS = "mamba_n_heads mamba_d_head mamba_n_groups mamba_d_state mamba_d_conv"


def mixer(at: str, *, bias: str, conv_bias: str, norm: str | None = None) -> tuple[Entry, ...]:
    """Declare a mixer below a module; its biases and its norm under these conditions."""
    return (
        *linear(concat(*(f"{_M}.{p}" for p in ("z", "x", "b", "c", "dt"))), f"{at}.in_proj", bias=bias),
        *linear(concat(*(f"{_M}.conv.{p}" for p in "xbc")), f"{at}.conv1d", bias=conv_bias),
        one(f"{_M}.a_log", f"{at}.A_log"),
        one(f"{_M}.d", f"{at}.D"),
        one(f"{_M}.dt_bias", f"{at}.dt_bias"),
        one(f"{_M}.norm", f"{at}.norm.weight", when=norm),
        *linear(f"{_M}.o", f"{at}.out_proj", bias=bias),
    )


def mamba_sizes(keys: str) -> Callable[[Config], Mapping[str, int]]:
    """Return what reads the sizes: by the config's keys for heads, a head, groups, state and kernel."""
    names = ("mamba_heads", "mamba_head", "mamba_groups", "mamba_state", "mamba_kernel")

    def read(config: Config) -> Mapping[str, int]:
        found = {
            n: v for n, k in zip(names, keys.split(), strict=True) if isinstance(v := config.get(k), int)
        }
        if "mamba_heads" in found and "mamba_head" in found:
            found["mamba_inner"] = found["mamba_heads"] * found["mamba_head"]
        return found

    return read


def mamba_or_attention(config: Config) -> tuple[str, ...]:
    """Return the mixer of each layer, by any of the ways configs say it."""
    names = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attn", "full_attention": "attn"}
    kinds = config.get("layer_types") or config.get("layers_block_type") or ()
    if kinds:
        return tuple(names.get(str(kind), str(kind)) for kind in kinds)
    full = config.get("attn_layer_indices") or ()
    return tuple("attn" if i in full else "mamba" for i in range(config.get("num_hidden_layers") or 0))


MAMBA2 = Family(
    name="mamba2",
    model_types=("mamba2",),
    entries=(
        one("embed", "backbone.embeddings.weight"),
        one("layers.*.attn_norm", "backbone.layers.*.norm.weight"),
        *mixer("backbone.layers.*.mixer", bias="use_bias", conv_bias="use_conv_bias"),
        one("final_norm", "backbone.norm_f.weight"),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": False, "use_conv_bias": True},
    ignored=(r"lm_head\.weight",),
    sizes=mamba_sizes("num_heads head_dim n_groups state_size conv_kernel"),
)
FEED_FORWARD = gated("layers.*.mlp", "model.layers.*.feed_forward", bias="mlp_bias")
FEED_FORWARD_NORMS = (
    one("layers.*.attn_norm", "model.layers.*.input_layernorm.weight"),
    one("layers.*.mlp_norm", "model.layers.*.pre_ff_layernorm.weight"),
)
FINAL = (
    one("final_norm", "model.final_layernorm.weight"),
    one("head", "lm_head.weight", when="!tie_word_embeddings"),
)
BAMBA = Family(
    name="bamba",
    model_types=("bamba",),
    entries=(
        EMBED,
        *mixer("model.layers.*.mamba", bias="mamba_proj_bias", conv_bias="mamba_conv_bias"),
        *attention("attention_bias", "attention_bias"),
        *FEED_FORWARD_NORMS,
        *FEED_FORWARD,
        *FINAL,
    ),
    flags={"tie_word_embeddings": False, "mamba_conv_bias": True},
    ignored=IGNORED,
    sizes=mamba_sizes(HYBRID_KEYS),
    kinds=lambda config: tuple(f"{kind} mlp" for kind in mamba_or_attention(config)),
)
