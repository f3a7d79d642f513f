"""OLMo-core's config.json tells its architectures apart; what it says beyond them needs another config."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from ckptconv.facts.olmo import olmo_facts

# OLMo-core 3.0, TransformerConfig.olmo2_1M().as_config_dict(), shortened to what is read.
NORM = {"name": "rms", "eps": 1e-6, "bias": False, "dtype": "float32"}
MODEL: dict[str, Any] = {
    "d_model": 64,
    "vocab_size": 96,
    "n_layers": 4,
    "name": "default",
    "tie_word_embeddings": False,
    "init_std": 0.02,
    "block": {
        "name": "reordered_norm",
        "layer_norm": NORM,
        "feed_forward": {"hidden_size": 96, "name": "default", "bias": False, "activation": "silu"},
        "sequence_mixer": {
            "name": "default",
            "n_heads": 4,
            "bias": False,
            "rope": {
                "name": "default",
                "theta": 500000,
                "partial_rotary_factor": 1.0,
                "no_global_rope": False,
            },
            "qk_norm": NORM,
            "use_head_qk_norm": False,
            "attention_sinks": False,
        },
    },
    "lm_head": {"name": "default", "layer_norm": NORM, "bias": False},
}
WINDOWS = {"pattern": [8, 8, -1], "force_full_attention_on_first_layer": False}


def _facts(folder: Path, path: str = "", value: Any = None) -> dict[str, Any]:
    model = copy.deepcopy(MODEL)
    if path:
        *above, key = path.split(".")
        within = model
        for part in above:
            within = within[part]
        within[key] = value
    said = {"model": model, "train_module": {"max_sequence_length": 128}}
    (folder / "config.json").write_text(json.dumps(said))
    return {name: fact.value for name, fact in olmo_facts([folder]).items()}


def test_norms_behind_are_olmo_2(tmp_path: Path) -> None:
    facts = _facts(tmp_path)
    assert (facts["model_type"], facts["reordered"], facts["positions"]) == ("olmo2", True, 128)


def test_windows_are_olmo_3(tmp_path: Path) -> None:
    facts = _facts(tmp_path, "block.sequence_mixer.sliding_window", WINDOWS)
    assert facts["model_type"] == "olmo3"
    near, far = "sliding_attention", "full_attention"
    assert facts["hf_config"]["layer_types"] == [near, near, far, far]
    assert facts["hf_config"]["sliding_window"] == 8
    rope = facts["hf_config"]["rope_parameters"]
    assert {kind: r["rope_theta"] for kind, r in rope.items()} == {near: 500000, far: 500000}


def test_releases_before_3_call_it_attention(tmp_path: Path) -> None:
    model = copy.deepcopy(MODEL)
    model["block"]["attention"] = model["block"].pop("sequence_mixer")
    (tmp_path / "config.json").write_text(json.dumps({"model": model}))
    assert olmo_facts([tmp_path])["heads"].value == 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("block.sequence_mixer.attention_sinks", True),
        ("block.sequence_mixer.clip_qkv", 8.0),
        ("block.sequence_mixer.gate", {"granularity": "headwise"}),
        ("block.sequence_mixer.use_head_qk_norm", True),
        ("block.sequence_mixer.rope.scaling", {"_CLASS_": "olmo_core.nn.rope.ABFRoPEScalingConfig"}),
        ("block.layer_norm.name", "l2_norm"),
        ("block.name", "peri_norm"),
        ("block_overrides", {"0": {"name": "reordered_norm"}}),
        ("embed_scale", 8.0),
        ("name", "normalized"),
    ],
)
def test_what_is_not_known_is_not_guessed(path: str, value: Any, tmp_path: Path) -> None:
    assert _facts(tmp_path, path, value).keys() == {"reordered"}
