"""Read what other libraries' own files say of a model: Meta's, OLMo-core's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckptconv.errors import FormatError
from ckptconv.facts.said import Said, first, fixed
from ckptconv.facts.value import Fact, computed
from ckptconv.places.jsonfile import read_json

__all__ = ["meta_facts", "olmo_facts"]


def meta_facts(folders: Sequence[Path]) -> dict[str, Fact]:
    """Read Meta's ``params.json`` (llama, ``model.py``, ``ModelArgs``)."""
    path = first(folders, "params.json")
    if path is None:
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise FormatError("no JSON object", where=path)
    said = Said(values, path)
    facts = {
        **fixed("Meta's", model_type="llama", qk_norm=False, qkv_bias=False, o_bias=False),
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
            return _olmo(Said(_mixer(model), path))
    return {}


def _mixer(model: dict[str, Any]) -> dict[str, Any]:
    """Call attention as 3.0 does: releases before it say ``attention``."""
    block = model.get("block")
    if isinstance(block, dict) and "sequence_mixer" not in block and "attention" in block:
        model = {**model, "block": {**block, "sequence_mixer": block["attention"]}}
    return model


def _olmo(said: Said) -> dict[str, Fact]:
    facts = {**fixed("OLMo-core"), **said.all(_OLMO)}
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
