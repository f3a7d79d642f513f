"""Write position embeddings as training arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.facts.wordless import cannot

__all__ = ["write_positions"]


def write_positions(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    """Return the arguments of position embeddings."""
    kind = v.get("position", "rope")
    rotary = kind == "rope"
    part = v.get("partial_rotary", 1.0)
    if kind == "alibi" and not mindspeed:
        raise cannot("position embeddings", kind)
    theta = v.get("rope_theta")
    if rotary and theta is None:
        raise PlanError("config.json does not say rope_theta", hint="give a complete --config")
    args: dict[str, Any] = {
        "position_embedding_type": kind,
        "add_position_embedding": kind == "learned_absolute" or rotary,
        "use_rotary_position_embeddings": rotary,
        "rotary_base": int(theta) if theta is not None and float(theta).is_integer() else theta or 10000,
        "rotary_percent": part,
        "rotary_interleaved": bool(v.get("interleaved")) and v.get("kv_rank") is None,
        "rotary_seq_len_interpolation_factor": None,
        "use_rope_scaling": False,
        "rope_scaling_factor": 8.0,
    }
    if v.get("kv_rank") is not None:
        args |= {"rope_type": "rope", "rotary_scaling_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    if mindspeed:
        args |= {"rope_scaling_type": None, "partial_rotary_factor": part if part != 1 else None}
    if (without := v.get("no_rope_freq")) is not None:
        if mindspeed:
            raise cannot("layers without rotary embedding")
        args["no_rope_freq"] = without
    scaling = v.get("rope_scaling")
    return args if scaling is None else args | _scaling(scaling, v, mindspeed)


def _scaling(scaling: Mapping[str, Any], v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    kind, factor = scaling["rope_type"], scaling.get("factor")
    before = scaling.get("original_max_position_embeddings")
    latent = v.get("kv_rank") is not None
    if kind == "linear" and factor is not None and float(factor).is_integer():
        return {"rotary_seq_len_interpolation_factor": int(factor)}
    fixed = (scaling.get("low_freq_factor"), scaling.get("high_freq_factor"), before)
    if kind == "llama3" and not mindspeed and fixed == (1.0, 4.0, 8192):
        return {"use_rope_scaling": True, "rope_scaling_factor": factor}
    if kind == "llama3" and mindspeed:
        return {
            "rope_scaling_type": kind,
            "rope_scaling_factor": factor,
            "low_freq_factor": fixed[0],
            "high_freq_factor": fixed[1],
            "original_max_position_embeddings": before,
        }
    if kind == "yarn":
        own, all_dim = _scales(scaling, free=not latent and not mindspeed)
    if kind == "yarn" and latent and not mindspeed:
        return {
            "rope_type": "yarn",
            "rotary_scaling_factor": factor,
            "original_max_position_embeddings": before,
            "beta_fast": scaling.get("beta_fast", 32),
            "beta_slow": scaling.get("beta_slow", 1),
            "mscale": own,
            "mscale_all_dim": all_dim,
        }
    if kind == "yarn" and not latent and not mindspeed:
        # Megatron-Bridge's names of what Megatron-LM's command line calls as those of latent attention.
        return {
            "position_embedding_type": "yarn",
            "rotary_scaling_factor": factor,
            "mscale": own,
            "mscale_all_dim": all_dim,
            "yarn_rotary_scaling_factor": factor,
            "yarn_mscale": own,
            "yarn_mscale_all_dim": all_dim,
            "yarn_original_max_position_embeddings": before,
            "yarn_beta_fast": scaling.get("beta_fast", 32),
            "yarn_beta_slow": scaling.get("beta_slow", 1),
            "yarn_correction_range_round_to_int": scaling.get("truncate", True),
        }
    if kind == "yarn" and (latent or (before and v.get("positions") == factor * before)):
        return {
            "rope_scaling_type": kind,
            "rope_scaling_factor": factor,
            "rope_scaling_original_max_position_embeddings": before,
            "beta_fast": scaling.get("beta_fast", 32),
            "beta_slow": scaling.get("beta_slow", 1),
            "rope_scaling_mscale": own,
            "rope_scaling_mscale_all_dim": all_dim,
        }
    if kind == "longrope" and mindspeed:
        return {
            "rope_scaling_type": kind,
            "short_factor": scaling.get("short_factor"),
            "long_factor": scaling.get("long_factor"),
            "rope_scaling_original_max_position_embeddings": before,
        }
    if kind == "dynamic" and mindspeed:
        return {"dynamic_factor": factor}
    raise cannot("rope_scaling", dict(scaling))


def _scales(scaling: Mapping[str, Any], *, free: bool) -> tuple[float, float]:
    """Return the scales whose ratio is what yarn multiplies queries and keys with.

    An ``attention_factor`` comes first (transformers 5.23, ``modeling_rope_utils.py``).

    Args:
        scaling: Of the config.
        free: Whether nothing else is computed with them, so that others of the same ratio do.
    """
    factor, wanted = scaling.get("factor"), scaling.get("attention_factor")
    said = (scaling.get("mscale"), scaling.get("mscale_all_dim"))
    own, all_dim = 1.0 if said[0] is None else said[0], 0.0 if said[1] is None else said[1]
    if wanted is None:
        return (own, all_dim) if not free or (own and all_dim) else (1.0, 0.0)
    grown = 0.1 * math.log(factor) if factor is not None and factor > 1 else 0.0
    usual = (1 + own * grown) / (1 + all_dim * grown) if own and all_dim else 1 + grown
    if abs(wanted - usual) < 1e-9:
        return own, all_dim
    if free and grown:
        return (wanted - 1) / grown, 0.0
    raise cannot("attention_factor", wanted)
