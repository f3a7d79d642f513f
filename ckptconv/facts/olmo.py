"""Read the ``config.json`` OLMo-core leaves, not Hugging Face's: 3.0, ``nn/transformer/config.py``.

What it says beyond what is known here is for the model's own config.json to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, Final

from ckptconv.facts.said import Said, fixed
from ckptconv.facts.typed import MOST_LAYERS, as_number, as_whole
from ckptconv.facts.value import Fact, Facts, computed
from ckptconv.places.jsonfile import read_json

__all__ = ["olmo_facts"]

_KEYS: Final[Mapping[str, tuple[str, type]]] = {
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
# How long a sequence it was trained on, the likeliest first.
_LENGTHS: Final[Mapping[str, tuple[str, type]]] = {
    "module": ("train_module.max_sequence_length", int),
    "dataset": ("dataset.sequence_length", int),
    "data": ("dataset.max_sequence_length", int),
}
# What changes nothing of what is computed, but for rounding.
_NO_MATTER: Final = {
    *("_CLASS_", "name", "dtype", "type", "full_precision", "backend", "use_flash", "dropout"),
    *("init_method", "init_seed", "init_std", "embedding_init_std", "freeze_params"),
    *("loss_implementation", "fused_linear_loss"),
}
# What else is read here; all other settings must be as if they were not there.
_READ: Final = {
    *("block", "lm_head", "layer_norm", "sequence_mixer", "rope", "qk_norm", "use_head_qk_norm"),
    *("feed_forward", "sliding_window", "block_overrides", "scaling", "eps", "bias"),
}
_FORMS: Final = {
    **dict.fromkeys(("", "sequence_mixer", "feed_forward", "lm_head"), ("default",)),
    "block": ("default", "reordered_norm"),
    "rope": ("default", "complex"),
}


def olmo_facts(folders: Sequence[Path]) -> dict[str, Fact]:
    """Return what a run says of its model; nothing where it computes what is not known here."""
    for folder in folders:
        path = folder / "config.json"
        values = read_json(path) if path.is_file() else None
        model = values.get("model") if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(model, dict) and "d_model" in model:
            facts = _olmo(Said(_mixer(model), path))
            length = next(iter(Said(values, path).all(_LENGTHS).values()), None)
            return {**facts, "positions": length} if "hidden" in facts and length is not None else facts
    return {}


def _mixer(model: dict[str, Any]) -> dict[str, Any]:
    """Call attention as 3.0 does: releases before it say ``attention``."""
    return {**model, "block": _renamed(model.get("block"))}


def _renamed(block: Any) -> Any:
    if isinstance(block, dict) and "sequence_mixer" not in block and "attention" in block:
        return {**{k: v for k, v in block.items() if k != "attention"}, "sequence_mixer": block["attention"]}
    return block


def _olmo(said: Said) -> dict[str, Fact]:
    model = said.values
    kind = said.fact("block.name", str)
    reordered = Fact(kind is not None and kind.value == "reordered_norm", kind.origin if kind else "")
    # What stands where is to be known even where config.json is given.
    words = {"reordered": reordered}
    layers = as_whole(model.get("n_layers")) or 0
    if not 0 < layers <= MOST_LAYERS or _strange(model):
        return words
    facts = {**fixed("OLMo-core"), **said.all(_KEYS), **words, "post_norm": reordered}
    mixer = model["block"]["sequence_mixer"]
    facts["qk_norm"] = Fact(
        mixer.get("qk_norm") is not None, f"{said.path.name} block.sequence_mixer.qk_norm"
    )
    if facts["qk_norm"].value and bool(mixer.get("use_head_qk_norm")) is reordered.value:
        return words  # norms of each head are those of models with norms ahead, norms of all of OLMo 2
    facts.setdefault("kv_heads", facts.get("heads", Fact(None, "")))
    if "head_dim" not in facts and {"hidden", "heads"} <= facts.keys():
        hidden, heads = facts["hidden"], facts["heads"]
        facts["head_dim"] = computed(hidden.value // max(1, heads.value), hidden, heads)
    windows = _windows(mixer.get("sliding_window"), layers)
    scaling = _scalings(model, layers)
    if windows is None or scaling is None:
        return words
    if not reordered.value:
        if any(windows) or any(s != scaling[0] for s in scaling):
            return words
        return {**facts, "rope_scaling": Fact(scaling[0], f"{said.path.name} rope.scaling")}
    return facts | (_olmo3(facts, windows, scaling, said) if facts["qk_norm"].value else {}) or words


def _strange(model: Mapping[str, Any]) -> bool:
    """Whether settings say something that is not read here."""
    block = model.get("block")
    if not isinstance(block, Mapping) or not isinstance(block.get("sequence_mixer"), Mapping):
        return True
    return _says_more(model, "") or any(
        part.get("name") not in ("rms", "fused_rms", "qwen_rms", None)
        for part in block.values()
        if isinstance(part, Mapping) and "eps" in part
    )


_OWN: Final = {where.rpartition(".")[2] for where, _ in _KEYS.values()}


def _says_more(values: Mapping[str, Any], within: str) -> bool:
    if within in _FORMS and values.get("name", _FORMS[within][0]) not in _FORMS[within]:
        return True
    for key, value in values.items():
        if key in ("sliding_window", "block_overrides", "scaling") or key in _NO_MATTER:
            continue
        if isinstance(value, Mapping):
            if key not in _READ or _says_more(value, key):
                return True
        elif key not in _READ and key not in _OWN and value not in (None, False):
            return True
    return False


def _windows(said: Any, layers: int) -> list[int | None] | None:
    """Return each layer's window (``SlidingWindowAttentionConfig``); None if they are not understood."""
    if said is None:
        return [None] * layers
    pattern = said.get("pattern") if isinstance(said, Mapping) else None
    if not isinstance(pattern, list) or not pattern or any(as_whole(w) is None for w in pattern):
        return None
    first = said.get("force_full_attention_on_first_layer", True)
    last = said.get("force_full_attention_on_last_layer", True)
    found: list[int | None] = []
    for layer in range(layers):
        size = pattern[(layer - bool(first)) % len(pattern)]
        full = (first and layer == 0) or (last and layer == layers - 1) or size < 1
        found.append(None if full else size)
    return found


def _scalings(model: Mapping[str, Any], layers: int) -> list[dict[str, Any] | None] | None:
    """Return each layer's scaling of rotary embedding; None if layers differ in something else."""
    block, overrides = model["block"], model.get("block_overrides") or {}
    if not isinstance(overrides, Mapping):
        return None
    found: list[dict[str, Any] | None] = []
    for layer in range(layers):
        own = _renamed(overrides.get(str(layer), block))
        if _without_scaling(own) != _without_scaling(block):
            return None
        given = ((own.get("sequence_mixer") or {}).get("rope") or {}).get("scaling")
        scaling = None if given is None else _scaling(given)
        if given is not None and scaling is None:
            return None
        found.append(scaling)
    return found


def _without_scaling(block: Any) -> Any:
    mixer = block.get("sequence_mixer") if isinstance(block, Mapping) else None
    if not isinstance(mixer, Mapping) or not isinstance(mixer.get("rope"), Mapping):
        return block
    rope = {k: v for k, v in mixer["rope"].items() if k != "scaling"}
    return {**block, "sequence_mixer": {**mixer, "rope": rope}}


def _scaling(given: Any) -> dict[str, Any] | None:
    """Return what transformers calls a scaling (``nn/rope.py``, ``to_hf_config``); None if it does not."""
    if not isinstance(given, Mapping):
        return None
    name = str(given.get("_CLASS_", "")).rpartition(".")[2]
    number = {k: as_number(v) for k, v in given.items()}
    if (number.get("attention_rescale_factor") or 1.0) != 1.0:
        return None

    def value(key: str, default: float) -> float:
        found = number.get(key)
        return default if found is None else found

    length = {"original_max_position_embeddings": int(value("old_context_len", 8192))}
    if name == "PIRoPEScalingConfig":
        return {"rope_type": "linear", "factor": value("factor", 2.0)}
    if name == "StepwiseRoPEScalingConfig":
        low, high = value("low_freq_proportion", 0.0), value("high_freq_proportion", 0.25)
        if low == 1 or high == 0:
            return None
        bounds = {"low_freq_factor": 1.0 / (1 - low), "high_freq_factor": 1.0 / high}
        return {"rope_type": "llama3", "factor": value("factor", 32.0), **bounds, **length}
    if name == "YaRNRoPEScalingConfig":
        factor = value("factor", 8.0)
        betas = {"beta_fast": value("beta_fast", 32), "beta_slow": value("beta_slow", 1)}
        by = 1.0 if factor <= 1 else 0.1 * log(factor) + 1.0
        return {"rope_type": "yarn", "factor": factor, **betas, **length, "attention_factor": by}
    return None


def _olmo3(
    facts: Facts, windows: Sequence[int | None], scaling: Sequence[dict[str, Any] | None], said: Said
) -> dict[str, Fact]:
    """Return OLMo 2, or 3 where layers have windows: those are not scaled there (transformers, ``olmo3``)."""
    sizes = {w for w in windows if w is not None}
    full = {str(s) for w, s in zip(windows, scaling, strict=True) if w is None}
    one = next((s for w, s in zip(windows, scaling, strict=True) if w is None), None)
    if len(sizes) > 1 or len(full) > 1:
        return {}
    origin = f"{said.path.name} sliding_window"
    if not sizes:
        return {
            "model_type": Fact("olmo2", f"{said.path.name} block.name"),
            "rope_scaling": Fact(one, f"{said.path.name} rope.scaling"),
        }
    if any(s is not None for w, s in zip(windows, scaling, strict=True) if w is not None):
        return {}
    theta = {"rope_theta": facts["rope_theta"].value if "rope_theta" in facts else None}
    beside = {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "sliding_window": sizes.pop(),
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
        **theta,
        "rope_scaling": one,
        "rope_parameters": {
            "full_attention": {**(one or {"rope_type": "default"}), **theta},
            "sliding_attention": {"rope_type": "default", **theta},
        },
    }
    return {"model_type": Fact("olmo3", origin), "hf_config": Fact(beside, origin)}
