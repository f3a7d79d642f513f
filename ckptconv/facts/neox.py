"""Read the YAML files GPT-NeoX leaves in ``configs``: EleutherAI/gpt-neox ea7aefd8, ``neox_args.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.facts.typed import as_flag, as_number, as_whole, bounded, short
from ckptconv.facts.value import Fact
from ckptconv.places.yamlfile import read_yaml

__all__ = ["neox_facts", "neox_settings"]

# What the options are that no file says.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "norm": "layernorm",
    "layernorm_epsilon": 1e-5,
    "rms_norm_epsilon": 1e-8,
    "pos_emb": "learned",
    "no_weight_tying": False,
    "activation": "gelu",
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000,
    "gpt_j_residual": False,
    "gpt_j_tied": False,
    "use_qk_layernorm": False,
    "use_mup": False,
}
_SIZES: Final = {
    "layers": "num_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "positions": "max_position_embeddings",
}
_GATED: Final = ("swiglu", "geglu", "reglu", "bilinear", "glu")


def neox_settings(folders: Sequence[Path]) -> tuple[dict[str, Any], Path] | None:
    """Return the settings of a run, all files of it together with defaults, and where they lie.

    Args:
        folders: Folders that may hold ``configs``, nearest first.
    """
    for folder in folders:
        files = sorted(p for e in ("yml", "yaml") for p in (folder / "configs").glob(f"*.{e}") if p.is_file())
        found: dict[str, Any] = {}
        for file in files:
            values = read_yaml(file, within=folder)
            if isinstance(values, dict):
                found |= {str(k).replace("-", "_"): v for k, v in values.items()}
        if "hidden_size" in found:
            return {**_DEFAULTS, **found}, folder / "configs"
    return None


def neox_facts(folders: Sequence[Path]) -> dict[str, Fact]:
    """Return what a run's settings say of its model; nothing where it computes what no config.json says."""
    read = neox_settings(folders)
    if read is None:
        return {}
    values, path = read
    own = values["norm"] == "rmsnorm"
    if values["pos_emb"] != "rotary" or values["norm"] not in ("layernorm", "rmsnorm"):
        return {}
    if any(values[k] for k in ("gpt_j_tied", "use_qk_layernorm", "use_mup")) or (
        own and values["gpt_j_residual"]
    ):
        return {}

    def fact(key: str, kind: type) -> Fact:
        value = values.get(key)
        found = {int: as_whole, float: as_number, bool: as_flag}[kind](value)
        if found is None:
            raise FormatError(f"{key} is {short(value)}", where=path, hint="check the file, or give --config")
        origin = f"configs {key}"
        return Fact(found if kind is bool else bounded(found, origin), origin)

    facts = {name: fact(key, int) for name, key in _SIZES.items()}
    heads = facts["heads"]
    facts["kv_heads"] = fact("num_kv_heads", int) if values.get("num_kv_heads") else heads
    facts["head_dim"] = Fact(facts["hidden"].value // max(1, heads.value), "configs hidden_size")
    facts["rope_theta"] = fact("rotary_emb_base", float)
    facts["rope_scaling"] = Fact(None, "configs rotary_emb_base")
    facts["partial_rotary"] = fact("rotary_pct", float)
    facts["norm_eps"] = fact("rms_norm_epsilon" if own else "layernorm_epsilon", float)
    facts["norm_kind"] = Fact("RMSNorm" if own else "LayerNorm", "configs norm")
    tied = fact("no_weight_tying", bool)
    facts["tied"] = Fact(not tied.value, tied.origin)
    facts["position"] = Fact("rope", "configs pos_emb")
    window = values.get("sliding_window_width")
    facts["window"] = (
        fact("sliding_window_width", int) if window else Fact(None, "configs sliding_window_width")
    )
    word = str(values["activation"])
    facts["gated"] = Fact(word in _GATED or own, "configs activation")
    facts["activation"] = Fact({"swiglu": "silu", "geglu": "gelu"}.get(word, word), "configs activation")
    for name in ("interleaved", "embed_scaled", "multipliers", "embed_norm", "post_norm"):
        facts[name] = Fact(False, "all models of GPT-NeoX")
    if not own:
        facts["model_type"] = Fact("gpt_neox", "configs norm")
        beside = fact("gpt_j_residual", bool)
        said = {"model_type": "gpt_neox", "use_parallel_residual": beside.value}
        facts["hf_config"] = Fact(said, "configs gpt_j_residual")
    return facts
