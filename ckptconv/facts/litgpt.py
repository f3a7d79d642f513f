"""Read what litgpt's ``model_config.yaml`` says of a model: litgpt 0.5, ``config.py`` and ``model.py``.

One class computes all of litgpt's models, so the settings tell the architecture; names only where the class
itself looks at them (``Gemma``, ``OLMo``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.facts.said import Said, first, fixed
from ckptconv.facts.typed import as_number
from ckptconv.facts.value import Fact, Facts, computed
from ckptconv.places.yamlfile import read_yaml

__all__ = ["litgpt_facts"]

_KEYS: Final[Mapping[str, tuple[str, type]]] = {
    "hidden": ("n_embd", int),
    "layers": ("n_layer", int),
    "heads": ("n_head", int),
    "kv_heads": ("n_query_groups", int),
    "head_dim": ("head_size", int),
    "inner": ("intermediate_size", int),
    "positions": ("block_size", int),
    # The true rows are those of the Hugging Face vocabulary; lines beyond are padding.
    "vocab": ("padded_vocab_size", int),
    "norm_eps": ("norm_eps", float),
    "rope_theta": ("rope_base", float),
    "qk_norm": ("norm_qk", bool),
    "qkv_bias": ("attn_bias", bool),
    "linear_bias": ("bias", bool),
    "o_bias": ("bias", bool),
    "partial_rotary": ("rotary_percentage", float),
    "interleaved": ("rope_interleave", bool),
    "embed_scaled": ("scale_embeddings", bool),
    "attn_softcap": ("attention_logit_softcapping", float),
    "logit_softcap": ("final_logit_softcapping", float),
    "query_pre_attn_scalar": ("attention_scores_scalar", int),
    "post_norm": ("post_attention_norm", bool),
    "window": ("sliding_window_size", int),
}
_EXPERTS: Final[Mapping[str, tuple[str, type]]] = {
    "experts": ("n_expert", int),
    "topk": ("n_expert_per_token", int),
    "routed_scaling": ("routed_scaling_factor", float),
    "first_k_dense": ("first_k_dense_replace", int),
}
_GATED: Final = ("LLaMAMLP", "GemmaMLP", "LLaMAMoE")
_HINT: Final = "give the model's config.json with --config"


def litgpt_facts(folders: Sequence[Path]) -> dict[str, Fact]:
    """Read ``model_config.yaml``, which lies beside the weights.

    Raises:
        FormatError: if what it says is not understood.
    """
    path = first(folders, "model_config.yaml")
    if path is None:
        return {}
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise FormatError("no settings in it", where=path)
    said = Said(values, path)
    facts = {**fixed("litgpt"), **said.all(_KEYS)}
    if _is_on(values, "bias"):  # of every linear module, query, key and value among them
        facts["qkv_bias"] = facts["linear_bias"]
    facts |= _norms(said, facts)
    facts |= _mlp(said)
    facts |= _experts(said)
    facts |= _rope(said, facts)
    facts |= _window(said, facts)
    return facts | _architecture(said, facts)


def _is_on(values: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = values.get(key)
    return default if value is None else bool(value)


def _norms(said: Said, facts: Facts) -> dict[str, Fact]:
    kind = said.fact("norm_class_name", str)
    if kind is None:
        return {}
    found = {"norm_kind": Fact("LayerNorm" if kind.value == "LayerNorm" else "RMSNorm", kind.origin)}
    name = said.fact("name", str)
    gemma = name is not None and "Gemma" in name.value and kind.value == "RMSNorm"
    found["zero_centered"] = computed(gemma, name or kind)
    return found


def _mlp(said: Said) -> dict[str, Fact]:
    kind, tanh = said.fact("mlp_class_name", str), said.values.get("gelu_approximate") == "tanh"
    if kind is None:
        return {}
    gelu = "gelu_pytorch_tanh" if tanh else "gelu"
    activation = "silu" if kind.value in ("LLaMAMLP", "LLaMAMoE") else gelu
    return {
        "gated": Fact(kind.value in _GATED, kind.origin),
        "activation": Fact(activation, f"{kind.origin}, gelu_approximate"),
    }


def _experts(said: Said) -> dict[str, Fact]:
    """Return the routing: a softmax over the chosen logits, or sigmoid scores where experts are in groups."""
    if not said.values.get("n_expert"):
        return {}
    found = said.all(_EXPERTS)
    inner = said.fact("moe_intermediate_size") or said.fact("intermediate_size")
    if inner is not None:
        found["expert_inner"] = inner
        if (shared := said.fact("n_shared_expert")) is not None and shared.value:
            found["shared_inner"] = computed(shared.value * inner.value, shared, inner)
    groups = said.fact("n_expert_groups")
    origin = f"{said.path.name} n_expert_groups"
    if groups is None:
        found |= {"norm_topk": Fact(True, origin), "score_function": Fact("softmax", origin)}
        found |= {"n_group": Fact(1, origin), "topk_group": Fact(1, origin)}
    else:
        found |= {"score_function": Fact("sigmoid", origin), "n_group": groups}
        found |= said.all({"norm_topk": ("norm_topk_prob", bool), "topk_group": ("n_topk_groups", int)})
    layers = said.fact("n_layer")
    if layers is not None:
        dense = found["first_k_dense"].value if "first_k_dense" in found else 0
        found["moe_layers"] = computed([i >= dense for i in range(layers.value)], layers)
    found.pop("first_k_dense", None)
    return found


def _rope(said: Said, facts: Facts) -> dict[str, Fact]:
    """Return the scaling of rotary embedding (``build_rope_cache``), and what YaRN changes of the scores."""
    origin = f"{said.path.name} rope_adjustments"
    by = said.fact("rope_condense_ratio", float)
    linear = {"rope_type": "linear", "factor": by.value} if by is not None and by.value != 1 else None
    given = said.values.get("rope_adjustments")
    if given is None:
        return {"rope_scaling": Fact(linear, by.origin if linear and by is not None else origin)}
    numbers = {k: as_number(v) for k, v in given.items()} if isinstance(given, Mapping) else {}
    factor = numbers.get("factor")
    if factor is None or linear is not None:
        raise FormatError("rope_adjustments is not understood", where=said.path, hint=_HINT)
    length = {"original_max_position_embeddings": numbers.get("original_max_seq_len")}
    if "low_freq_factor" in numbers:
        kept = {k: numbers.get(k) for k in ("low_freq_factor", "high_freq_factor")}
        scaling = {"rope_type": "llama3", "factor": factor, **kept, **length}
    elif "beta_fast" in numbers:
        kept = {k: numbers.get(k) for k in ("beta_fast", "beta_slow")}
        each, every = numbers.get("mscale"), numbers.get("mscale_all_dim")
        scale = _mscale(factor, every) if every else 1.0
        ratio = _mscale(factor, each) / scale if each and every else _mscale(factor, each) if each else scale
        scaling = {"rope_type": "yarn", "factor": factor, **kept, **length, "attention_factor": ratio}
        if every:
            width = facts.get("query_pre_attn_scalar") or facts.get("head_dim")
            if width is not None:
                wide = Fact(width.value / scale**4, f"{origin}.mscale_all_dim")
                return {"rope_scaling": Fact(scaling, origin), "query_pre_attn_scalar": wide}
    else:
        scaling = {"rope_type": "linear", "factor": factor}
    if None in scaling.values():
        raise FormatError("rope_adjustments is not understood", where=said.path, hint=_HINT)
    return {"rope_scaling": Fact(scaling, origin)}


def _mscale(factor: float, by: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * by * log(factor) + 1.0


def _flags(said: Said, key: str) -> list[bool] | None:
    """Return a list of one flag for each layer."""
    layers, value = said.fact("n_layer"), said.values.get(key)
    if value is None or layers is None:
        return None
    if not isinstance(value, list) or len(value) < layers.value:
        raise FormatError(f"{key} does not say one thing of each layer", where=said.path, hint=_HINT)
    return [bool(v) for v in value[: layers.value]]


def _window(said: Said, facts: Facts) -> dict[str, Fact]:
    """Return which layers have a window, where not all have.

    Until 0.5.5 ``sliding_window_layer_placing`` said so: 2, or interleaved, for every second layer.
    """
    window, which = facts.get("window"), _flags(said, "sliding_window_indices")
    if which is None and said.values.get("sliding_window_layer_placing") in (2, "interleaved"):
        which = [i % 2 == 0 for i in range(facts["layers"].value)]
    if window is None or window.value is None or which is None or all(which):
        return {}
    if not any(which):
        return {"window": Fact(None, f"{said.path.name} sliding_window_indices")}
    every_second = [i % 2 == 0 for i in range(len(which))]
    origin = f"{said.path.name} sliding_window_indices"
    return {"window_skip": Fact(2 if which == every_second else which, origin)}


def _architecture(said: Said, facts: Facts) -> dict[str, Fact]:
    """Return the architectures that only settings tell, and what refuses all others that compute so."""
    values = said.values
    beside, one_norm = _is_on(values, "parallel_residual", True), _is_on(values, "shared_attention_norm")
    kind, mlp = values.get("norm_class_name"), values.get("mlp_class_name")
    bias, head_bias = _is_on(values, "bias", True), _is_on(values, "lm_head_bias")
    ahead = _is_on(values, "norm_1", True) and _is_on(values, "norm_2", True)
    after = _is_on(values, "post_attention_norm") and _is_on(values, "post_mlp_norm")
    alone = values.get("n_query_groups") == values.get("n_head")
    plain = ahead and not (after or _is_on(values, "norm_qk"))
    layered = plain and kind == "LayerNorm"

    def found(model_type: str, **more: Any) -> dict[str, Fact]:
        said_by = Fact({"model_type": model_type, **more}, said.path.name)
        return {"model_type": Fact(model_type, said.path.name), "hf_config": said_by}

    if layered and mlp == "GptNeoxMLP" and bias and not one_norm and not head_bias and alone:
        return found("gpt_neox", use_parallel_residual=beside)
    if layered and mlp == "GptNeoxMLP" and bias and one_norm and head_bias:
        return found("phi")
    if layered and mlp == "GptNeoxMLP" and not bias and beside and facts["partial_rotary"].value == 1:
        return found("falcon", **_falcon(values, one_norm))
    if layered and mlp == "LLaMAMLP" and not beside and not bias and not head_bias:
        if "OLMo" in str(values.get("name")):
            return found("olmo", clip_qkv=None)
        return found("stablelm", use_parallel_residual=False, qk_layernorm=False)
    behind = after and not (_is_on(values, "norm_1", True) or _is_on(values, "norm_2", True))
    if kind == "RMSNorm" and not beside and behind and values.get("norm_qk_type") == "olmo2":
        return found("olmo2")
    if _is_on(values, "norm_qk") and after and values.get("rope_local_base_freq") is not None:
        return found("gemma3_text", **_gemma3(said, facts))
    return _odd(said)


def _falcon(values: Mapping[str, Any], one_norm: bool) -> dict[str, Any]:
    """Falcon 7B shares a norm, and one key and value; 40B and 180B have two norms, and groups."""
    groups = values.get("n_query_groups")
    more = {"multi_query": groups == 1} if one_norm else {"num_kv_heads": groups}
    return {
        "new_decoder_architecture": not one_norm,
        "parallel_attn": True,
        "alibi": False,
        "ffn_hidden_size": values.get("intermediate_size"),
        **more,
    }


def _gemma3(said: Said, facts: Facts) -> dict[str, Any]:
    """Return what Gemma 3 alone has: a rotary base for layers with a window, and one for those without.

    Raises:
        FormatError: if the layers are not those.
    """
    near, windowed = _flags(said, "rope_indices"), _flags(said, "sliding_window_indices")
    if near is None or near != windowed:
        raise FormatError(
            "rope_indices are not those of the layers with a window", where=said.path, hint=_HINT
        )
    scalar = facts.get("query_pre_attn_scalar") or facts["head_dim"]
    return {
        "sliding_window": facts["window"].value,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in near],
        "query_pre_attn_scalar": scalar.value,
        "rope_theta": facts["rope_theta"].value,
        "rope_local_base_freq": said.values["rope_local_base_freq"],
        "rope_scaling": facts["rope_scaling"].value,
    }


def _odd(said: Said) -> dict[str, Fact]:
    """Return what no architecture here computes, under the words of training arguments."""
    values, name = said.values, said.path.name
    odd: dict[str, Fact] = {}
    if _is_on(values, "parallel_residual", True):
        odd["parallel_attention"] = Fact(True, f"{name} parallel_residual")
    if _is_on(values, "norm_qk") and values.get("norm_qk_type") == "olmo2":
        odd["qk_norm"] = Fact("of all heads", f"{name} norm_qk_type")
    if values.get("rope_local_base_freq") is not None:
        odd["rope_local_base_freq"] = Fact(values["rope_local_base_freq"], f"{name} rope_local_base_freq")
    if values.get("latent_attention") is not None:
        odd["position"] = Fact("latent attention", f"{name} latent_attention")
    return odd
