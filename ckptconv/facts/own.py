"""Read what other libraries' own files say of a model: Meta's, litgpt's, OLMo-core's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptconv.errors import FormatError
from ckptconv.facts.typed import as_flag, as_number, as_whole, bounded, short
from ckptconv.facts.value import Fact, computed
from ckptconv.places.jsonfile import read_json
from ckptconv.places.yamlfile import read_yaml

__all__ = ["litgpt_facts", "meta_facts", "olmo_facts"]

# What no key of these files states, since the library computes it in this way only.
_PLAIN = {
    "position": "rope",
    "interleaved": False,
    "norm_kind": "RMSNorm",
    "gated": True,
    "linear_bias": False,
    "activation": "silu",
    "embed_scaled": False,
    "multipliers": False,
    "partial_rotary": 1.0,
    "window": None,
}


class _Said:
    """Look values of a file up, typed; each fact says where it is from."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    def fact(self, key: str, kind: type = int) -> Fact | None:
        """Return what a key says; None if it says nothing.

        Raises:
            FormatError: if it is of another kind.
        """
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            return None
        origin = f"{self.path.name} {key}"
        found = {int: as_whole, float: as_number, bool: as_flag}.get(kind, lambda v: v)(value)
        if found is None or (kind is str and not isinstance(found, str)):
            raise FormatError(f"{key} is {short(value)}", where=self.path, hint="check the file")
        return Fact(found if kind in (str, bool) else bounded(found, origin), origin)

    def all(self, table: Mapping[str, tuple[str, type]]) -> dict[str, Fact]:
        """Return the facts of a table that the file states."""
        found = {name: self.fact(key, kind) for name, (key, kind) in table.items()}
        return {name: fact for name, fact in found.items() if fact is not None}


def _first(folders: Sequence[Path], name: str) -> Path | None:
    return next((f / name for f in folders if (f / name).is_file()), None)


def _fixed(who: str, **more: Any) -> dict[str, Fact]:
    return {name: Fact(value, f"all models of {who}") for name, value in {**_PLAIN, **more}.items()}


def meta_facts(folders: Sequence[Path]) -> dict[str, Fact]:
    """Read Meta's ``params.json`` (llama, ``model.py``, ``ModelArgs``)."""
    path = _first(folders, "params.json")
    if path is None:
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise FormatError("no JSON object", where=path)
    said = _Said(values, path)
    facts = {
        **_fixed("Meta's", model_type="llama", qk_norm=False, qkv_bias=False, o_bias=False),
        **said.all({
            "hidden": ("dim", int),
            "layers": ("n_layers", int),
            "heads": ("n_heads", int),
            "kv_heads": ("n_kv_heads", int),
            "vocab": ("vocab_size", int),
            "norm_eps": ("norm_eps", float),
            "rope_theta": ("rope_theta", float),
        }),
    }  # fmt: skip
    facts.setdefault("kv_heads", facts.get("heads", Fact(None, "")))
    facts.setdefault("rope_theta", Fact(10000.0, "default of Meta's model.py"))
    facts.setdefault("norm_eps", Fact(1e-5, "default of Meta's model.py"))
    if facts.get("vocab", Fact(-1, "")).value < 1:
        facts.pop("vocab", None)
    if {"hidden", "heads"} <= facts.keys():
        hidden, heads = facts["hidden"], facts["heads"]
        facts["head_dim"] = computed(hidden.value // max(1, heads.value), hidden, heads)
    scaled = said.fact("use_scaled_rope", bool)
    facts["rope_scaling"] = Fact(None, "params.json says nothing of it")
    if scaled is not None and scaled.value:
        # llama-models, models/llama3/model.py, apply_scaling
        factor = said.fact("rope_scaling_factor", float) or said.fact("rope_scale_factor", float)
        by = float(factor.value) if factor is not None else 8.0
        parts = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        facts["rope_scaling"] = Fact({"rope_type": "llama3", "factor": by, **parts}, scaled.origin)
        facts["positions"] = Fact(131072, scaled.origin)
    elif facts["rope_theta"].value == 500000.0:
        facts["positions"] = Fact(8192, "Meta's Llama 3")
    return facts


_LITGPT: dict[str, tuple[str, type]] = {
    "hidden": ("n_embd", int),
    "layers": ("n_layer", int),
    "heads": ("n_head", int),
    "kv_heads": ("n_query_groups", int),
    "head_dim": ("head_size", int),
    "inner": ("intermediate_size", int),
    "positions": ("block_size", int),
    "norm_eps": ("norm_eps", float),
    "rope_theta": ("rope_base", float),
    "qk_norm": ("norm_qk", bool),
    "qkv_bias": ("attn_bias", bool),
    "linear_bias": ("bias", bool),
    "partial_rotary": ("rotary_percentage", float),
    "embed_scaled": ("scale_embeddings", bool),
    "attn_softcap": ("attention_logit_softcapping", float),
    "logit_softcap": ("final_logit_softcapping", float),
    "post_norm": ("post_attention_norm", bool),
    "window": ("sliding_window_size", int),
    "experts": ("n_expert", int),
    "topk": ("n_expert_per_token", int),
    "expert_inner": ("moe_intermediate_size", int),
    "norm_topk": ("norm_topk_prob", bool),
}


def litgpt_facts(folders: Sequence[Path]) -> dict[str, Fact]:
    """Read litgpt's ``model_config.yaml`` (litgpt 0.5, ``config.py``)."""
    path = _first(folders, "model_config.yaml")
    if path is None:
        return {}
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise FormatError("no settings in it", where=path)
    said = _Said(values, path)
    facts = {**_fixed("litgpt"), **said.all(_LITGPT)}
    # The true rows are those of the Hugging Face vocabulary; lines beyond are padding.
    facts |= said.all({"vocab": ("padded_vocab_size", int)})
    kind = said.fact("norm_class_name", str)
    if kind is not None:
        facts["norm_kind"] = Fact("LayerNorm" if kind.value == "LayerNorm" else "RMSNorm", kind.origin)
    mlp = said.fact("mlp_class_name", str)
    if mlp is not None:
        facts["gated"] = Fact(mlp.value in ("LLaMAMLP", "GemmaMLP", "LLaMAMoE"), mlp.origin)
        if mlp.value == "GemmaMLP":
            facts["activation"] = Fact("gelu_pytorch_tanh", mlp.origin)
    if facts.get("qk_norm", Fact(False, "")).value is False:
        facts["o_bias"] = facts.get("linear_bias", Fact(False, ""))
    if not facts.get("experts", Fact(0, "")).value:
        for name in ("experts", "topk", "expert_inner", "norm_topk"):
            facts.pop(name, None)
    said_rope = said.values.get("rope_adjustments")
    facts["rope_scaling"] = Fact(None, f"{path.name} rope_adjustments")
    if isinstance(said_rope, Mapping):
        factor = as_number(said_rope.get("factor"))
        if factor is None:
            raise FormatError("rope_adjustments is not understood", where=path, hint="give --config")
        kept = {k: as_number(said_rope.get(k)) for k in ("low_freq_factor", "high_freq_factor")}
        length = as_whole(said_rope.get("original_max_seq_len"))
        if None not in kept.values():
            facts["rope_scaling"] = Fact(
                {"rope_type": "llama3", "factor": factor, **kept, "original_max_position_embeddings": length},
                f"{path.name} rope_adjustments",
            )
        else:
            facts["rope_scaling"] = Fact(
                {"rope_type": "linear", "factor": factor}, f"{path.name} rope_adjustments"
            )
    return facts


_OLMO: dict[str, tuple[str, type]] = {
    "hidden": ("d_model", int),
    "layers": ("n_layers", int),
    "vocab": ("vocab_size", int),
    "tied": ("tie_word_embeddings", bool),
    "heads": ("block.sequence_mixer.n_heads", int),
    "kv_heads": ("block.sequence_mixer.n_kv_heads", int),
    "head_dim": ("block.sequence_mixer.head_dim", int),
    "qkv_bias": ("block.sequence_mixer.bias", bool),
    "o_bias": ("block.sequence_mixer.bias", bool),
    "rope_theta": ("block.sequence_mixer.rope.theta", float),
    "partial_rotary": ("block.sequence_mixer.rope.partial_rotary_factor", float),
    "norm_eps": ("block.layer_norm.eps", float),
    "inner": ("block.feed_forward.hidden_size", int),
    "linear_bias": ("block.feed_forward.bias", bool),
    "activation": ("block.feed_forward.activation", str),
}


def olmo_facts(folders: Sequence[Path]) -> dict[str, Fact]:
    """Read the ``config.json`` OLMo-core leaves, not Hugging Face's (3.0, ``nn/transformer/config.py``)."""
    for folder in folders:
        path = folder / "config.json"
        values = read_json(path) if path.is_file() else None
        model = values.get("model") if isinstance(values, dict) else None
        if isinstance(model, dict) and "d_model" in model:
            return _olmo(_Said(_mixer(model), path))
    return {}


def _mixer(model: dict[str, Any]) -> dict[str, Any]:
    """Call attention as 3.0 does: releases before it say ``attention``."""
    block = model.get("block")
    if isinstance(block, dict) and "sequence_mixer" not in block and "attention" in block:
        model = {**model, "block": {**block, "sequence_mixer": block["attention"]}}
    return model


def _olmo(said: _Said) -> dict[str, Fact]:
    facts = {**_fixed("OLMo-core"), **said.all(_OLMO)}
    kind = said.fact("block.name", str)
    facts["reordered"] = Fact(
        kind is not None and kind.value.startswith("reordered"), kind.origin if kind else ""
    )
    facts["post_norm"] = facts["reordered"]
    norm = said.values.get("block", {}).get("sequence_mixer", {}).get("qk_norm")
    facts["qk_norm"] = Fact(norm is not None, f"{said.path.name} block.sequence_mixer.qk_norm")
    per_head = said.fact("block.sequence_mixer.use_head_qk_norm", bool)
    if facts["reordered"].value and not (per_head is not None and per_head.value):
        facts["model_type"] = Fact("olmo2", facts["reordered"].origin)
    facts.setdefault("kv_heads", facts.get("heads", Fact(None, "")))
    facts["rope_scaling"] = Fact(None, "config.json says nothing of it")
    if "head_dim" not in facts and {"hidden", "heads"} <= facts.keys():
        hidden, heads = facts["hidden"], facts["heads"]
        facts["head_dim"] = computed(hidden.value // max(1, heads.value), hidden, heads)
    return facts
