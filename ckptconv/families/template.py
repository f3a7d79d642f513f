"""Say what the config.json of an architecture states, in facts that training arguments state as well."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field
from typing import Any

from ckptconv.records import dataclass

__all__ = ["Template", "decoder", "usual"]


@dataclass(frozen=True, slots=True)
class Template:
    """List the keys of an architecture's config.json.

    The names of facts are those of `ckptconv.families.dims` and `ckptconv.facts`.

    Attributes:
        architecture: The class, for ``architectures``.
        keys: The fact each key states. Several words: facts that must agree; ``?`` at the end: where the
            fact is not known, what transformers assumes does.
        fixed: Facts that no key states, because the class computes it in this way only.
        literals: Keys that say the same in every such config.
        assumed: What transformers assumes where a config lacks the key.
        like: Families that compute the same where both fit, and are meant if nothing is said.
        carried: What a framework's arguments have no word for is written beside them, as ``hf_config``, and
            not refused.
        by_name: It is found by ``model_type`` alone, since arguments do not say how it computes.
    """

    architecture: str
    keys: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    literals: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    like: tuple[str, ...] = ()
    carried: bool = False
    by_name: bool = False


# What the decoders after Llama have in common.
_KEYS = {
    "vocab_size": "vocab",
    "hidden_size": "hidden",
    "intermediate_size": "inner",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "hidden_act": "activation",
    "max_position_embeddings": "positions",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
    "rope_scaling": "rope_scaling",
    "tie_word_embeddings": "tied",
}
_FIXED = {
    "position": "rope",
    "interleaved": False,
    "norm_kind": "RMSNorm",
    "gated": True,
    "linear_bias": False,
    "qkv_bias": False,
    "o_bias": False,
    "qk_norm": False,
    "embed_norm": False,
    "embed_scaled": False,
    "post_norm": False,
    "multipliers": False,
    "partial_rotary": 1.0,
    "window": None,
    "attn_softcap": None,
    "logit_softcap": None,
    "query_pre_attn_scalar": None,
    "output_gate": False,
    "sinks": False,
    "router_linear_bias": False,
    "activation_clamp": None,
    "gate_offset": 0.0,
}


def decoder(
    architecture: str,
    keys: Mapping[str, str] | None = None,
    *,
    without: tuple[str, ...] = (),
    fixed: Mapping[str, Any] | None = None,
    literals: Mapping[str, Any] | None = None,
    assumed: Mapping[str, Any] | None = None,
    like: tuple[str, ...] = (),
    carried: bool = False,
    by_name: bool = False,
) -> Template:
    """Declare a decoder by what it has beyond Llama's keys; a fact that a key states is not fixed.

    Args:
        architecture: As in `Template`.
        keys: Keys that are added or state something else.
        without: Keys of Llama it has not.
        fixed: Facts fixed in another way than in Llama.
        literals: As in `Template`.
        assumed: As in `Template`.
        like: As in `Template`.
        carried: As in `Template`.
        by_name: As in `Template`.
    """
    stated = {k: v for k, v in {**_KEYS, **(keys or {})}.items() if k not in without}
    facts = {word for words in stated.values() for word in words.rstrip("?").split()}
    settled = {k: v for k, v in {**_FIXED, **(fixed or {})}.items() if k not in facts}
    return Template(
        architecture,
        stated,
        settled,
        literals or {},
        {"tie_word_embeddings": False, "hidden_act": "silu", "rope_theta": 10000.0, **(assumed or {})},
        like,
        carried or by_name,
        by_name,
    )


_USUAL = {
    "layer_norm_eps": "norm_eps?",
    "layer_norm_epsilon": "norm_eps?",
    "norm_epsilon": "norm_eps?",
    "norm_eps": "norm_eps?",
    "activation_function": "activation?",
    "partial_rotary_factor": "partial_rotary?",
    "sliding_window": "window?",
    "attention_bias": "qkv_bias o_bias?",
    "use_bias": "qkv_bias o_bias linear_bias?",
    "mlp_bias": "linear_bias?",
}


def usual(here: Collection[str]) -> Template:
    """Return a template of the keys most decoders have, for a family that has none of its own.

    Args:
        here: The slots every model of the family has.
    """
    fixed = {
        "gated": bool({"layers.*.mlp.gate", "layers.*.moe.experts.{e}.gate"} & set(here)),
        "qk_norm": "layers.*.attn.q_norm" in here,
        "norm_kind": "LayerNorm" if "final_norm.bias" in here else "RMSNorm",
        "post_norm": "layers.*.attn_post_norm" in here,
        "embed_norm": "embed_norm" in here,
    }
    return decoder("", _USUAL, fixed=fixed)
