"""What a MindFormers run's YAML says becomes a config.json, each field with its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptconv.dialects.mindformers.settle import find_run
from ckptconv.errors import FormatError, PlanError
from ckptconv.facts.mindformers import read_run, run_facts
from ckptconv.families.config import config_from
from ckptconv.families.detect import fitting, observed

DENSE = {
    *("embed", "final_norm", "head", "layers.*.attn_norm", "layers.*.mlp_norm"),
    *(f"layers.*.attn.{n}" for n in "qkvo"),
    *(f"layers.*.mlp.{n}" for n in ("gate", "up", "down")),
}
SPARSE = {s for s in DENSE if ".mlp." not in s} | {
    "layers.*.moe.router",
    *(f"layers.*.moe.experts.{{e}}.{n}" for n in ("gate", "up", "down")),
}
LLAMA: dict[str, Any] = {
    "type": "LlamaConfig",
    "hidden_size": 4096,
    "num_layers": 4,
    "num_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 32000,
    "seq_length": 2048,
    "intermediate_size": 11008,
}


def built(config: dict[str, Any], slots: set[str]) -> tuple[dict[str, Any], dict[str, str]]:
    facts = run_facts(config)
    (family,) = fitting(facts, slots)
    return config_from(observed(facts, slots), family)


def test_llama_with_its_defaults_and_their_origins() -> None:
    values, origins = built(LLAMA, DENSE)
    assert values["model_type"] == "llama"
    assert (values["num_key_value_heads"], values["head_dim"]) == (8, 128)
    assert values["max_position_embeddings"] == 2048
    assert values["rms_norm_eps"] == 1e-5
    assert origins["num_hidden_layers"] == "yaml model_config.num_layers"
    assert origins["rms_norm_eps"] == "default of LlamaConfig"


@pytest.mark.parametrize(
    ("given", "inner"),
    [
        ({}, 11008),  # Llama 2 7B
        (
            {"multiple_of": 4096, "ffn_dim_multiplier": 1.3, "hidden_size": 8192, "num_heads": 64},
            28672,
        ),  # 70B
        ({"multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),  # Llama 3 8B
    ],
)
def test_the_width_of_the_mlp_is_worked_out_as_llama_does(given: dict[str, Any], inner: int) -> None:
    config = {k: v for k, v in LLAMA.items() if k != "intermediate_size"} | given
    assert run_facts(config)["inner"].value == inner


def test_biases_tell_qwen2() -> None:
    slots = DENSE | {f"layers.*.attn.{n}.bias" for n in "qkv"}
    values, _ = built({**LLAMA, "qkv_has_bias": True}, slots)
    assert values["model_type"] == "qwen2"
    assert values["use_sliding_window"] is False


def test_experts_tell_mixtral() -> None:
    moe = {"expert_num": 8, "num_experts_chosen": 2}
    values, origins = built({**LLAMA, "moe_config": moe}, SPARSE)
    assert (values["model_type"], values["num_local_experts"]) == ("mixtral", 8)
    assert origins["num_experts_per_tok"] == "yaml model_config.moe_config.num_experts_chosen"


def test_scaled_rotary_embeddings() -> None:
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    values, _ = built({**LLAMA, "extend_method": "LLAMA3", "scaling_factor": llama3}, DENSE)
    assert values["rope_scaling"] == {"rope_type": "llama3", **llama3}
    values, _ = built({**LLAMA, "extend_method": "PI", "scaling_factor": 2}, DENSE)
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(PlanError, match="rope_scaling"):
        built({**LLAMA, "extend_method": "NTK", "scaling_factor": 2}, DENSE)


def test_configs_of_the_core_have_hugging_faces_names() -> None:
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 96,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "vocab_size": 100,
        "max_position_embeddings": 64,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": False,
    }
    slots = SPARSE | {"layers.*.attn.q_norm", "layers.*.attn.k_norm"}
    values, _ = built(config, slots)
    said = {k: values[k] for k in config}
    assert said == config
    assert values["mlp_only_layers"] == []


def test_glm_says_its_query_groups_and_its_base() -> None:
    config = {
        "type": "ChatGLM2Config",
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "kv_channels": 8,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "padded_vocab_size": 96,
        "ffn_hidden_size": 48,
        "seq_length": 64,
        "add_qkv_bias": True,
        "rope_ratio": 500,
    }
    values, _ = built(config, DENSE)
    assert (values["model_type"], values["multi_query_group_num"]) == ("chatglm", 2)
    assert values["rope_ratio"] == 500
    assert run_facts({**config, "multi_query_attention": False})["kv_heads"].value == 4


def test_other_files_are_no_runs(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("- 1\n- 2\n")
    assert read_run(file) is None
    file.write_text("model: {arch: 3}\n")
    assert read_run(file) is None
    file.write_text("model: {arch: {type: X}, model_config: {a: 1}}\n")
    assert read_run(file) == {"a": 1, "arch": "X"}
    for text in ("a: [", "x: &x [*x]", "x" * (1 << 23)):
        file.write_text(text)
        with pytest.raises(FormatError):
            read_run(file)


def test_a_run_beside_the_checkpoint_that_cannot_be_read_is_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "notes.yaml").write_text("a: [")
    assert find_run([tmp_path], None) == (None, {})
    (tmp_path / "run.yaml").write_text("model: {model_config: {a: *nothing}}\n")
    with pytest.raises(FormatError) as caught:
        find_run([tmp_path], None)
    assert caught.value.where == str(tmp_path / "run.yaml")
