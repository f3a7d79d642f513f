"""Read what a MindFormers run's YAML says of its model.

Keys: mindformers fd4deeb and 1.9, ``models/llama/llama_config.py``, ``models/glm2/glm2_config.py``,
``models/*/configuration_*.py`` (Hugging Face's names), ``parallel_core/transformer_config_utils.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.errors import FormatError
from ckptconv.facts.computing import odd_arguments
from ckptconv.facts.typed import KINDS, MOST_LAYERS, as_flag, as_number, as_whole, bounded, short
from ckptconv.facts.value import Fact, computed
from ckptconv.places.yamlfile import read_yaml

__all__ = ["read_run", "run_facts"]

# Fact -> the keys that may say it, most reliable first.
_WHOLE: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size",),
    "layers": ("num_layers", "num_hidden_layers"),
    "heads": ("num_heads", "num_attention_heads"),
    "vocab": ("padded_vocab_size", "vocab_size"),
    "positions": ("max_position_embeddings", "max_position_embedding", "seq_length"),
    "inner": ("intermediate_size", "ffn_hidden_size"),
    "head_dim": ("head_dim", "kv_channels"),
    "expert_inner": ("moe_intermediate_size", "moe_ffn_hidden_size"),
    "experts": ("n_routed_experts", "num_experts", "num_moe_experts", "num_local_experts"),
    "topk": ("num_experts_per_tok", "moe_router_topk"),
    "q_rank": ("q_lora_rank",),
    "kv_rank": ("kv_lora_rank",),
    "nope": ("qk_nope_head_dim",),
    "rope": ("qk_rope_head_dim",),
    "v_dim": ("v_head_dim",),
    "n_group": ("n_group",),
    "topk_group": ("topk_group",),
    "mtp": ("num_nextn_predict_layers", "mtp_num_layers"),
    "window": ("sliding_window",),
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "pad": ("pad_token_id",),
}
_NUMBERS: dict[str, tuple[str, ...]] = {
    "norm_eps": ("rms_norm_eps", "layernorm_epsilon", "layer_norm_epsilon"),
    "rope_theta": ("rope_theta", "theta", "rotary_base"),
    "routed_scaling": ("routed_scaling_factor", "moe_router_topk_scaling_factor"),
    "partial_rotary": ("partial_rotary_factor",),
}
_FLAGS: dict[str, tuple[str, ...]] = {
    "tied": ("tie_word_embeddings",),
    "qkv_bias": ("qkv_has_bias", "add_qkv_bias", "attention_bias"),
    "norm_topk": ("norm_topk_prob",),
}
_TEXTS: dict[str, tuple[str, ...]] = {
    "model_type": ("model_type",),
    "activation": ("hidden_act",),
    "score_function": ("scoring_func",),
}
_SAID = {
    int: "no whole number",
    (int, float): "no number",
    bool: "neither true nor false",
    str: "no text",
}
# Configurations whose class is of one architecture.
_CLASSES = {
    "ChatGLM2Config": "chatglm",
    "GPT2Config": "gpt2",
    "BloomConfig": "bloom",
    "InternLM2Config": "internlm2",
    "DeepseekV3Config": "deepseek_v3",
}
# What a configuration assumes (the class' own defaults) where the YAML does not say.
_ASSUMED: dict[str, dict[str, Any]] = {
    "LlamaConfig": {"norm_eps": 1e-5, "rope_theta": 10000.0, "tied": False, "bos": 1, "eos": 2, "pad": 0},
    "ChatGLM2Config": {"norm_eps": 1e-5, "tied": False},
    "GPT2Config": {"norm_eps": 1e-5, "activation": "gelu_new", "tied": True},
    "BloomConfig": {"norm_eps": 1e-5, "tied": True},
}


def read_run(path: Path) -> dict[str, Any] | None:
    """Return the model's configuration in a YAML file, None if it holds none.

    The class of the model (``model.arch.type``) is added as ``arch``.

    Raises:
        FormatError: if the file is no YAML of a run.
    """
    content = read_yaml(path, hint="check --yaml")
    model = content.get("model") if isinstance(content, dict) else None
    config = model.get("model_config") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(config, dict):
        return None
    arch = model.get("arch")
    found = {str(k): v for k, v in config.items()}
    if isinstance(arch, dict) and isinstance(arch.get("type"), str):
        found["arch"] = arch["type"]
    return found


def run_facts(config: Mapping[str, Any]) -> dict[str, Fact]:
    """Return the facts a run's ``model_config`` states, each with its key.

    Args:
        config: What `read_run` returned.
    """
    found: dict[str, Fact] = odd_arguments(config, "yaml model_config")
    for table, kinds in ((_WHOLE, int), (_NUMBERS, (int, float)), (_FLAGS, bool), (_TEXTS, str)):
        for name, keys in table.items():
            fact = _first(config, keys, kinds)
            if fact is not None:
                found[name] = fact
    kind = str(config.get("type") or "")
    if "model_type" not in found and (own := _class(config, kind)) is not None:
        found["model_type"] = own
    _heads(config, found)
    _width(config, found)
    _positions(config, found, kind)
    _experts(config, found)
    found.setdefault("window", Fact(None, "not in the YAML"))
    for name, value in _ASSUMED.get(kind, {}).items():
        found.setdefault(name, Fact(value, f"default of {kind}"))
    if kind in ("", "LlamaConfig", "ChatGLM2Config"):
        found.setdefault("activation", Fact("silu", f"default of {kind or 'MindFormers'}"))
    return found


def _first(config: Mapping[str, Any], keys: tuple[str, ...], kinds: Any) -> Fact | None:
    for key in keys:
        value, origin = config.get(key), f"yaml model_config.{key}"
        if value is None or (isinstance(value, str) and value.lower() in ("none", "")):
            continue
        if key.endswith("_token_id") and isinstance(value, list):
            return Fact([_read(v, kinds, origin) for v in value], origin)
        return Fact(_read(value, kinds, origin), origin)
    return None


def _read(value: Any, kinds: Any, origin: str) -> Any:
    found = as_whole(value) if kinds is int else as_flag(value) if kinds is bool else value
    if not isinstance(found, kinds) or (isinstance(found, bool) and kinds is not bool):
        raise FormatError(f"{origin} is {short(value)}, which is {_SAID[kinds]}", hint="check the run's YAML")
    return found if isinstance(found, str) else bounded(found, origin)


def _class(config: Mapping[str, Any], kind: str) -> Fact | None:
    if kind in _CLASSES:
        return Fact(_CLASSES[kind], "yaml model_config.type")
    if str(config.get("arch", "")).startswith("Baichuan"):
        return Fact("baichuan", "yaml arch.type")
    return None


def _heads(config: Mapping[str, Any], found: dict[str, Fact]) -> None:
    heads, hidden = found.get("heads"), found.get("hidden")
    groups = _first(
        config, ("n_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_query_groups"), int
    )
    if config.get("multi_query_attention") is False:  # glm2_config.py: every head has its own
        groups = None
    if "kv_rank" in found:
        groups = heads
    kv_heads = groups or heads
    if kv_heads is not None:
        found["kv_heads"] = kv_heads
    if "kv_rank" in found:
        found.pop("head_dim", None)
        found.setdefault("q_rank", Fact(None, "yaml model_config.q_lora_rank"))
    elif "head_dim" not in found and heads is not None and hidden is not None and heads.value:
        found["head_dim"] = computed(hidden.value // heads.value, hidden, heads)


def _width(config: Mapping[str, Any], found: dict[str, Fact]) -> None:
    """Work out the width of the MLP where none is given (llama_layer.py, ``LlamaFeedForward``)."""
    hidden = found.get("hidden")
    if "inner" in found or hidden is None:
        return
    if (ratio := _first(config, ("expand_ratio",), int)) is not None:  # GPT-2
        found["inner"] = computed(ratio.value * hidden.value, hidden, ratio)
    elif config.get("type") == "LlamaConfig":
        factor = _first(config, ("ffn_dim_multiplier",), (int, float))
        multiple = _first(config, ("multiple_of",), int) or Fact(256, "default of LlamaConfig")
        if multiple.value < 1:
            raise FormatError(f"{multiple.origin} is {multiple.value}", hint="check the run's YAML")
        width = int((factor.value + 0.01) * 4 * hidden.value) if factor is not None else 4 * hidden.value
        width = int(bounded(2 * width // 3, "the width of the MLP"))
        found["inner"] = computed(-(-width // multiple.value) * multiple.value, hidden, factor, multiple)


def _positions(config: Mapping[str, Any], found: dict[str, Fact], kind: str) -> None:
    """Read rotary embedding's base and scaling."""
    if kind in ("GPT2Config", "BloomConfig"):
        return
    if (ratio := _first(config, ("rope_ratio",), (int, float))) is not None:
        found["rope_theta"] = computed(10000.0 * ratio.value, ratio)
    elif kind == "ChatGLM2Config":
        found.setdefault("rope_theta", Fact(10000.0, "default of ChatGLM2Config"))
    own = config.get("rope_scaling")
    if isinstance(own, dict) or ("rope_scaling" in config and own is None):
        own = None if own is None else _rope(own, "yaml model_config.rope_scaling")
        found["rope_scaling"] = Fact(own, "yaml model_config.rope_scaling")
        return
    method = str(config.get("extend_method") or "None").lower()
    origin = "yaml model_config." + ("extend_method" if "extend_method" in config else "rope_scaling")
    factor = config.get("scaling_factor")
    if method == "none":
        found["rope_scaling"] = Fact(None, origin if "extend_method" in config else "not in the YAML")
    elif method == "pi" and (by := as_number(factor)) is not None:
        found["rope_scaling"] = Fact({"rope_type": "linear", "factor": float(bounded(by, origin))}, origin)
    elif method in ("llama3", "yarn") and isinstance(factor, dict):
        found["rope_scaling"] = Fact({"rope_type": method, **_rope(factor, origin)}, origin)


def _rope(scaling: dict[str, Any], origin: str) -> Any:
    """Return the parameters of a rotary embedding, typed."""
    if (found := KINDS["rope_scaling"](scaling)) is None:
        raise FormatError(f"{origin} is {short(scaling)}, which scales nothing", hint="check the run's YAML")
    return found


def _experts(config: Mapping[str, Any], found: dict[str, Fact]) -> None:
    """Read how many experts there are, how wide, and in which layers."""
    nested = config.get("moe_config")
    if isinstance(nested, dict):
        for name, key in (("experts", "expert_num"), ("topk", "num_experts_chosen")):
            origin = f"yaml model_config.moe_config.{key}"
            if name not in found and nested.get(key) is not None:
                found[name] = Fact(_read(nested[key], int, origin), origin)
    experts = found.get("experts")
    if experts is None or experts.value < 2:
        found.pop("experts", None)
        return
    if "expert_inner" not in found and "inner" in found:
        found["expert_inner"] = found["inner"]
    shared = _first(config, ("n_shared_experts",), int)
    if shared is not None and shared.value and "expert_inner" in found:
        inner = found["expert_inner"]
        found["shared_inner"] = computed(shared.value * inner.value, shared, inner)
    if (layers := found.get("layers")) is not None:
        if not 0 <= layers.value <= MOST_LAYERS:
            raise FormatError(f"a model of {layers.value} layers, says {layers.origin}")
        first = _first(config, ("first_k_dense_replace",), int)
        start = first.value if first is not None else 0
        found["moe_layers"] = computed([i >= start for i in range(layers.value)], first or experts)
