"""A state dict becomes the very file that ``save_pretrained`` writes, for every architecture with a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import ckptconv
from ckptconv.errors import PlanError
from ckptconv.families import FAMILIES, find_family

TINY: dict[str, Any] = dict(
    vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32,
)  # fmt: skip
OWN_SIZES: dict[str, dict[str, Any]] = {
    "GPT2Config": dict(vocab_size=61),
    "BloomConfig": dict(vocab_size=61, hidden_size=16, n_layer=2, n_head=4),
}
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12)
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("LlamaConfig", {}),
    ("LlamaConfig", dict(attention_bias=True, mlp_bias=True, head_dim=8)),
    ("LlamaConfig", dict(tie_word_embeddings=True)),
    ("MistralConfig", {}),
    ("Qwen2Config", {}),
    ("Qwen2Config", dict(tie_word_embeddings=True)),
    ("Qwen3Config", dict(head_dim=8, tie_word_embeddings=True)),
    ("GPT2Config", dict(n_embd=16, n_head=4, n_layer=2, n_positions=32)),
    ("MixtralConfig", dict(num_local_experts=4)),
    ("Qwen2MoeConfig", EXPERTS | dict(shared_expert_intermediate_size=20, mlp_only_layers=[0])),
    ("Qwen3MoeConfig", EXPERTS | dict(head_dim=8)),
]
ROUTED = dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1)
ROUTED |= dict(moe_intermediate_size=12, first_k_dense_replace=1)
LATENT = dict(q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
MODELS += [
    ("GemmaConfig", dict(head_dim=8)),
    ("GemmaConfig", dict(attention_bias=True)),
    ("Gemma2Config", dict(head_dim=8, tie_word_embeddings=False)),
    ("Gemma2Config", dict(head_dim=8)),
    ("Phi3Config", dict(pad_token_id=0)),
    ("GlmConfig", dict(head_dim=8, pad_token_id=0)),
    ("Glm4Config", dict(head_dim=8, pad_token_id=0)),
    ("Glm4Config", dict(head_dim=8, pad_token_id=0, attention_bias=False, tie_word_embeddings=True)),
    ("SeedOssConfig", dict(head_dim=8)),
    ("SeedOssConfig", dict(head_dim=8, attention_bias=False, attention_out_bias=True, mlp_bias=True)),
    ("BloomConfig", {}),
    ("Glm4MoeConfig", ROUTED | dict(head_dim=8)),
    ("Glm4MoeConfig", ROUTED | dict(head_dim=8, use_qk_norm=True, attention_bias=True, n_shared_experts=2)),
    ("DeepseekV2Config", ROUTED | LATENT | dict(num_key_value_heads=4)),
    ("DeepseekV2Config", ROUTED | LATENT | dict(num_key_value_heads=4, q_lora_rank=None, mlp_bias=True)),
    ("DeepseekV3Config", ROUTED | LATENT | dict(num_key_value_heads=4)),
    ("DeepseekV3Config", ROUTED | LATENT | dict(num_key_value_heads=4, attention_bias=True)),
]
# Known by how they save their experts alone.
EXPERTS_ONLY: list[tuple[str, dict[str, Any]]] = [
    ("OlmoeConfig", dict(num_experts=4)),
    ("FlexOlmoConfig", dict(num_experts=4, pad_token_id=0)),
    ("Dots1Config", ROUTED | dict(head_dim=8)),
    ("HunYuanMoEV1Config", dict(num_experts=4, moe_topk=2, head_dim=8)),
    (
        "SolarOpenConfig",
        dict(n_routed_experts=4, num_experts_per_tok=2, head_dim=8, moe_intermediate_size=12),
    ),
]


def make(kind: str, more: dict[str, Any]) -> torch.nn.Module:
    sizes = OWN_SIZES.get(kind, TINY)
    config = getattr(transformers, kind)(**{**sizes, **more, "bos_token_id": 1, "eos_token_id": 2})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("kind", "more"), MODELS + EXPERTS_ONLY, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "plain"
)
def test_a_state_dict_becomes_what_save_pretrained_writes(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    model = make(kind, more)
    model.save_pretrained(tmp_path / "true")  # type: ignore[operator]
    torch.save(model.state_dict(), tmp_path / "model.pt")
    plan = ckptconv.plan(tmp_path / "model.pt", config=str(tmp_path / "true"))
    assert not [text for level, text in plan.notes if "not in the checkpoint" in text or "beyond" in text]
    ckptconv.convert(tmp_path / "model.pt", tmp_path / "out", config=str(tmp_path / "true"))
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "true" / name).read_bytes()


@pytest.mark.parametrize(("kind", "more"), MODELS[::2], ids=lambda v: v if isinstance(v, str) else "")
def test_every_tensor_of_another_shape_is_refused(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    """The table says the shape of each tensor the model has: cut a row off any, and it is named."""
    model = make(kind, more)
    model.config.save_pretrained(tmp_path)  # type: ignore[operator, union-attr]
    family = find_family(model.config.model_type)  # type: ignore[union-attr]
    assert family is not None
    config = model.config.to_dict()  # type: ignore[operator, union-attr]
    shapes = {name: shape for name, shape, _ in family.expected(config)}
    for name, shape in shapes.items():
        with pytest.raises(PlanError, match=name.replace(".", r"\.")):
            family.compare(config, {**shapes, name: (shape[0] + 1, *shape[1:])})


def test_a_pinned_tensor_keeps_its_dtype(tmp_path: Path) -> None:
    model = make("DeepseekV3Config", ROUTED | LATENT | dict(num_key_value_heads=4))
    model.config.save_pretrained(tmp_path)  # type: ignore[operator, union-attr]
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    rounded = ckptconv.open(tmp_path / "model.pt").to("hf", dtype="bfloat16", config=str(tmp_path))
    assert rounded[bias].dtype.name == "float32"
    assert all(info.dtype.name == "bfloat16" for name, info in rounded.items() if name != bias)


def test_families_are_found_by_their_files() -> None:
    found = [f.name for f in FAMILIES]
    assert {"llama", "qwen2", "qwen3", "gpt2", "mixtral", "qwen2_moe", "qwen3_moe"} <= set(found)
    assert len(found) == len(set(found))
