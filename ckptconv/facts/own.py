"""Read what other libraries' own files say of a model: Meta's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptconv.errors import FormatError
from ckptconv.facts.said import Said, first, fixed
from ckptconv.facts.value import Fact, computed
from ckptconv.places.jsonfile import read_json

__all__ = ["meta_facts"]


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
