"""What an architecture computes that training arguments have no word for is said where they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptconv.families import find_family
from running import succeeds

CASES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("granite", {"attention_multiplier": 0.1}, "attention_multiplier (0.1)"),
    ("granite", {"attention_multiplier": 8**-0.5, "residual_multiplier": 0.5}, "residual_multiplier (0.5)"),
    ("granite", {"attention_multiplier": 8**-0.5, "logits_scaling": 1.0}, ""),
    ("hyperclovax", {"embedding_multiplier": 2.0}, "embedding_multiplier (2.0)"),
    ("hyperclovax", {}, ""),
    ("minicpm3", {"scale_emb": 12}, "scale_emb (12)"),
    ("gpt_neox", {}, "use_parallel_residual"),
    ("gpt_neox", {"use_parallel_residual": False}, ""),
    ("phimoe", {}, "SparseMixer"),
    ("hunyuan_v1_dense", {}, "after rotary"),
    ("xglm", {}, "begin at 2"),
    ("cwm", {"sliding_window": 8}, "window of 8"),
)


@pytest.mark.parametrize(("name", "fields", "naming"), CASES, ids=repr)
def test_it_is_named_and_only_where_the_config_asks_for_it(
    name: str, fields: dict[str, Any], naming: str
) -> None:
    family = find_family(name)
    assert family is not None and family.beyond is not None
    said = list(family.beyond({"hidden_size": 32, "num_attention_heads": 4, **fields}))
    assert (naming in " ".join(said)) if naming else said == []


@pytest.mark.parametrize(("scale", "warned"), [(0.1, True), (8**-0.5, False)])
def test_whoever_writes_ranks_is_warned(scale: float, warned: bool, tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_multiplier=scale,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(tmp_path / "hf")
    said = succeeds("megatron-split", tmp_path / "hf", tmp_path / "run", "--tp", "2").err
    assert ("they do not say attention_multiplier" in said) == warned


def test_helium_turns_neighbouring_pairs(tmp_path: Path) -> None:
    """megatron-core 0.19 has a word for it, and Hunyuan 3's factor of experts' weights is one of its own."""
    from ckptconv.facts.reverse import Form, arguments_from
    from ckptconv.families.config import facts_of

    sizes = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=64, head_dim=8,
    )  # fmt: skip
    helium, hy = find_family("helium"), find_family("hy_v3")
    assert helium is not None and hy is not None
    args = arguments_from(facts_of({**sizes, "model_type": "helium"}, helium), Form("megatron"))
    assert args["rotary_interleaved"] is True
    routed = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "router_scaling_factor": 2.5,
    }
    args = arguments_from(facts_of({**sizes, **routed, "model_type": "hy_v3"}, hy), Form("megatron"), [])
    assert args["moe_router_topk_scaling_factor"] == 2.5


def test_a_model_that_sees_is_asked_by_the_config_of_its_language_model(tmp_path: Path) -> None:
    """Granite Vision is LLaVA-NeXT around Granite."""
    from transformers import (
        CLIPVisionConfig,
        GraniteConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    text = GraniteConfig(vocab_size=64, num_key_value_heads=2, attention_multiplier=0.1, **sizes)
    seen = CLIPVisionConfig(image_size=8, patch_size=4, **sizes)
    config = LlavaNextConfig(text_config=text, vision_config=seen, image_token_index=3)
    LlavaNextForConditionalGeneration(config).save_pretrained(tmp_path / "hf")
    said = succeeds("megatron-split", tmp_path / "hf", tmp_path / "run", "--tp", "2").err
    assert "they do not say attention_multiplier (0.1)" in said
