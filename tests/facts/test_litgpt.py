"""What litgpt's settings compute tells the architecture; what none here computes refuses all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptconv.errors import FormatError
from ckptconv.facts.litgpt import litgpt_facts

# litgpt 0.5.13, config.py: Config's own values, of small sizes.
SETTINGS = {
    "n_layer": 4,
    "n_embd": 64,
    "n_head": 4,
    "n_query_groups": 4,
    "head_size": 16,
    "intermediate_size": 96,
    "block_size": 128,
    "padded_vocab_size": 96,
    "norm_class_name": "LayerNorm",
    "mlp_class_name": "GptNeoxMLP",
    "norm_eps": 1e-5,
    "parallel_residual": True,
    "shared_attention_norm": False,
    "bias": True,
    "lm_head_bias": False,
    "rotary_percentage": 0.25,
    "rope_base": 10000,
    "gelu_approximate": "none",
}
LLAMA = {
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "parallel_residual": False,
    "bias": False,
}


def _facts(folder: Path, **more: Any) -> dict[str, Any]:
    (folder / "model_config.yaml").write_text(yaml.dump({**SETTINGS, **more}))
    return {name: fact.value for name, fact in litgpt_facts([folder]).items()}


@pytest.mark.parametrize(
    ("settings", "family", "said"),
    [
        ({}, "gpt_neox", {"use_parallel_residual": True}),
        ({"parallel_residual": False}, "gpt_neox", {"use_parallel_residual": False}),
        ({"shared_attention_norm": True, "lm_head_bias": True}, "phi", {}),
        (
            {"bias": False, "rotary_percentage": 1.0, "shared_attention_norm": True, "n_query_groups": 1},
            "falcon",
            {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
        ),
        (
            {"bias": False, "rotary_percentage": 1.0, "n_query_groups": 2},
            "falcon",
            {"new_decoder_architecture": True, "num_kv_heads": 2},
        ),
        ({**LLAMA, "norm_class_name": "LayerNorm"}, "stablelm", {"use_parallel_residual": False}),
        ({**LLAMA, "norm_class_name": "LayerNorm", "name": "OLMo-1B-hf"}, "olmo", {}),
    ],
)
def test_settings_tell_the_architecture(
    settings: dict[str, Any], family: str, said: dict[str, Any], tmp_path: Path
) -> None:
    facts = _facts(tmp_path, **settings)
    assert facts["model_type"] == family
    assert said.items() <= facts["hf_config"].items()


def test_what_is_computed_side_by_side_is_no_llama(tmp_path: Path) -> None:
    assert "parallel_attention" not in _facts(tmp_path, **LLAMA)
    facts = _facts(tmp_path, **{**LLAMA, "parallel_residual": True})
    assert facts["parallel_attention"] is True
    assert "model_type" not in facts


def test_experts_are_chosen_before_their_scores_are_weighed(tmp_path: Path) -> None:
    """Whatever ``norm_topk_prob`` says, the softmax is over the chosen ones (``LLaMAMoE``)."""
    sparse = {**LLAMA, "mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2}
    facts = _facts(tmp_path, **sparse, norm_topk_prob=False)
    assert (facts["norm_topk"], facts["expert_inner"], facts["moe_layers"]) == (True, 96, [True] * 4)


@pytest.mark.parametrize(
    ("settings", "skip"),
    [
        ({"sliding_window_indices": [1, 0, 1, 0]}, 2),
        ({"sliding_window_indices": [0, 1, 1, 1]}, [False, True, True, True]),
        ({"sliding_window_layer_placing": 2}, 2),
        ({"sliding_window_layer_placing": 1}, None),
    ],
)
def test_layers_with_a_window(settings: dict[str, Any], skip: Any, tmp_path: Path) -> None:
    facts = _facts(tmp_path, **LLAMA, sliding_window_size=8, **settings)
    assert (facts["window"], facts.get("window_skip")) == (8, skip)


def test_yarn_is_said_with_the_factor_that_is_computed(tmp_path: Path) -> None:
    """transformers assumes another where none is said."""
    yarn = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_seq_len": 32}
    assert _facts(tmp_path, **LLAMA, rope_adjustments=yarn)["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.0,
    }


def test_what_is_not_understood_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="rope_adjustments"):
        _facts(tmp_path, rope_adjustments={"short_factor": [1.0]})
