"""What classes of Megatron-Bridge compute goes into config.json, from their names and fields alone."""

from __future__ import annotations

from typing import Any

import pytest

from ckptconv.facts.facts import read_facts
from ckptconv.facts.providers import completed, known_class
from ckptconv.families import find_family
from ckptconv.families.config import config_from

SIZES = {
    "num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4,
    "num_query_groups": 2, "kv_channels": 16, "vocab_size": 160, "max_position_embeddings": 128,
    "seq_length": 128, "rotary_base": 10000.0, "layernorm_epsilon": 1e-6, "group_query_attention": True,
    "swiglu": True, "add_bias_linear": False, "untie_embeddings_and_output_weights": True,
    "normalization": "RMSNorm", "position_embedding_type": "rope", "rotary_percent": 1.0,
    "window_size": None,
}  # fmt: skip


def _config(name: str, **more: Any) -> dict[str, Any]:
    model = {**SIZES, **more}
    known = known_class((name,), model)
    assert known is not None
    facts = read_facts(completed(known, model, model))
    family = find_family(known.model_type)
    assert family is not None
    return config_from(facts, family)[0]


def test_gemma_3_has_two_rotary_bases_and_windows_in_turns() -> None:
    found = _config(
        "Gemma3ModelProvider",
        rotary_base=[10000.0, 1e6],
        interleaved_attn_pattern=[1, 1],
        window_size=32,
        softmax_scale=0.25,
        rope_scaling_factor=8.0,
    )
    assert found["layer_types"] == ["sliding_attention", "full_attention"] * 2
    assert (found["sliding_window"], found["query_pre_attn_scalar"]) == (32, 16)
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 10000.0)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_exaone_attends_to_all_positions() -> None:
    found = _config("exaone4_layer_spec", kv_channels=32, qk_layernorm=True)
    assert (found["model_type"], found["sliding_window"], found["head_dim"]) == ("exaone4", None, 32)


def test_ernie_says_which_layers_have_experts_by_first_and_last() -> None:
    found = _config(
        "_ernie45_decoder_block_spec",
        moe_layer_freq=[0, 1, 1, 0],
        num_experts=4,
        moe_router_topk=2,
        moe_ffn_hidden_size=32,
        moe_shared_expert_intermediate_size=64,
    )
    assert (found["moe_layer_start_index"], found["moe_layer_end_index"]) == (1, 2)
    assert (found["moe_num_experts"], found["moe_k"], found["moe_num_shared_experts"]) == (4, 2, 2)


@pytest.mark.parametrize(("pattern", "known"), [("M-M*|M-/M*", True), ("*-*-", False), ("MG*-", False)])
def test_a_hybrid_model_is_nemotron_if_its_pattern_says_so(pattern: str, known: bool) -> None:
    model = {
        "hybrid_layer_pattern": pattern,
        "position_embedding_type": "none",
        "activation_func": "megatron.core.activations.squared_relu",
    }
    assert (known_class(("HybridModelProvider",), model) is not None) == known
    if known:
        assert _config("HybridModelProvider", **model)["hybrid_override_pattern"] == "M-M*M-"


@pytest.mark.parametrize(("interleaved", "source", "known"), [(True, "x", True), (False, "zai/GLM-5", True),
                                                              (False, "deepseek", False)])  # fmt: skip
def test_sparse_attention_is_glm_5_where_its_indexer_or_its_source_says_so(
    interleaved: bool, source: str, known: bool
) -> None:
    model = {
        "experimental_attention_variant": "dsa",
        "dsa_indexer_rope_interleaved": interleaved,
        "hf_model_id": source,
    }
    assert (known_class(("MLAModelProvider",), model) is not None) == known


def test_a_model_that_sees_has_the_configs_of_its_parts() -> None:
    vision = {
        "_target_": "x.Qwen3VLVisionConfig",
        "model_type": "qwen3_vl_vision",
        "depth": 2,
        "id2label": {},
    }
    found = _config(
        "Qwen3VLModelProvider",
        position_embedding_type="mrope",
        qk_layernorm=True,
        mrope_section=[2, 3, 3],
        image_token_id=150,
        vision_config=vision,
    )
    assert found["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert found["vision_config"] == {"model_type": "qwen3_vl_vision", "depth": 2}
    text = found["text_config"]
    assert (text["model_type"], text["hidden_size"], text["head_dim"]) == ("qwen3_vl_text", 64, 16)
    assert text["rope_parameters"]["mrope_section"] == [2, 3, 3]
    assert "rope_theta" not in text and found["image_token_id"] == 150


def test_sections_follow_the_width_of_a_head_where_they_are_those_of_the_class() -> None:
    found = _config(
        "Qwen25VLModelProvider",
        position_embedding_type="mrope",
        add_qkv_bias=True,
        num_attention_heads=1,
        kv_channels=64,
        num_query_groups=1,
    )
    assert found["text_config"]["rope_parameters"]["mrope_section"] == [8, 12, 12]
