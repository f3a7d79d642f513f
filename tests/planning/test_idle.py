"""A router's biases without a place are left out where they choose nothing, and refused where they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptconv
from ckptconv.errors import PlanError

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 16,
    "moe_intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}


def _run(folder: Path, bias: list[float]) -> tuple[Path, Path]:
    """Make what torchtitan saves of a mixture of experts, under its names, and a config."""
    shapes = {
        "tok_embeddings.weight": (12, 8),
        "layers.0.attention_norm.weight": (8,),
        "layers.0.attention.qkv_linear.wq.weight": (8, 8),
        "layers.0.attention.qkv_linear.wk.weight": (4, 8),
        "layers.0.attention.qkv_linear.wv.weight": (4, 8),
        "layers.0.attention.q_norm.weight": (4,),
        "layers.0.attention.k_norm.weight": (4,),
        "layers.0.attention.wo.weight": (8, 8),
        "layers.0.ffn_norm.weight": (8,),
        "layers.0.moe.router.gate.weight": (3, 8),
        "layers.0.moe.routed_experts.inner_experts.w1_EFD": (3, 6, 8),
        "layers.0.moe.routed_experts.inner_experts.w3_EFD": (3, 6, 8),
        "layers.0.moe.routed_experts.inner_experts.w2_EDF": (3, 8, 6),
        "norm.weight": (8,),
        "lm_head.weight": (12, 8),
    }
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    state["layers.0.moe.expert_bias_E"] = torch.tensor(bias)
    torch.save(state, folder / "model.pt")
    (folder / "config").mkdir()
    (folder / "config" / "config.json").write_text(json.dumps(CONFIG))
    return folder / "model.pt", folder / "config"


@pytest.mark.parametrize("bias", [[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]])
def test_one_number_for_all_experts_chooses_none(bias: list[float], tmp_path: Path) -> None:
    run, config = _run(tmp_path, bias)
    ckptconv.convert(run, tmp_path / "out", config=str(config))
    assert not any("bias" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_biases_that_choose_are_left_out_only_if_a_user_says_so(tmp_path: Path) -> None:
    run, config = _run(tmp_path, [0.0, 0.001, 0.0])
    with pytest.raises(PlanError, match="expert_bias_E") as caught:
        ckptconv.convert(run, tmp_path / "out", config=str(config))
    assert "expert_bias_E" in (caught.value.hint or "")
    ckptconv.convert(run, tmp_path / "out", config=str(config), drop=["*.expert_bias_E"])
