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
from ckptconv.families import families, find_family

TINY: dict[str, Any] = dict(
    vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32,
)  # fmt: skip
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


def make(kind: str, more: dict[str, Any]) -> torch.nn.Module:
    sizes = {"vocab_size": 61} if kind == "GPT2Config" else TINY
    config = getattr(transformers, kind)(**{**sizes, **more, "bos_token_id": 1, "eos_token_id": 2})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("kind", "more"), MODELS, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "plain"
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


@pytest.mark.parametrize(("kind", "more"), MODELS[::3], ids=lambda v: v if isinstance(v, str) else "")
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


def test_families_are_found_by_their_files() -> None:
    found = [f.name for f in families()]
    assert {"llama", "qwen2", "qwen3", "gpt2", "mixtral", "qwen2_moe", "qwen3_moe"} <= set(found)
    assert len(found) == len(set(found))
