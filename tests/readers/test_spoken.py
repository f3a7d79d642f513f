"""Names of other libraries mean what those libraries compute, also where only the config tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptconv

Tensors = dict[str, torch.Tensor]
CONFIG = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
}
_CLASSES = {"llama": "LlamaForCausalLM", "phi3": "Phi3ForCausalLM"}
# Rows of a head of 4 lie in pairs in torchtune's Llama, in halves in its Phi-3 and at Hugging Face.
_ORDER = [0, 2, 1, 3]


def _tune() -> Tensors:
    """What torchtune's Llama and Phi-3 have under the same names (0.6, ``models/convert_weights.py``)."""
    shapes = {
        "tok_embeddings.weight": (12, 8),
        "layers.0.sa_norm.scale": (8,),
        "layers.0.attn.q_proj.weight": (8, 8),
        "layers.0.attn.k_proj.weight": (4, 8),
        "layers.0.attn.v_proj.weight": (4, 8),
        "layers.0.attn.output_proj.weight": (8, 8),
        "layers.0.mlp_norm.scale": (8,),
        "layers.0.mlp.w1.weight": (6, 8),
        "layers.0.mlp.w2.weight": (8, 6),
        "layers.0.mlp.w3.weight": (6, 8),
        "norm.scale": (8,),
        "output.weight": (12, 8),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def _converted(folder: Path, family: str, **more: object) -> Tensors:
    config = {**CONFIG, "model_type": family, "architectures": [_CLASSES[family]]}
    (folder / "config.json").write_text(json.dumps(config))
    ckptconv.convert(folder, folder / "out", **more)
    [file] = (folder / "out").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_the_config_tells_how_rows_of_query_and_key_lie(family: str, tmp_path: Path) -> None:
    tensors = _tune()
    torch.save(tensors, tmp_path / "model-00001-of-00001.bin")
    found = _converted(tmp_path, family)
    key = tensors["layers.0.attn.k_proj.weight"]
    if family == "llama":
        assert torch.equal(found["model.layers.0.self_attn.k_proj.weight"], key[_ORDER])
    else:
        assert torch.equal(found["model.layers.0.self_attn.qkv_proj.weight"][8:12], key)


def test_an_adapter_beside_the_model_it_was_added_to_is_not_the_model(tmp_path: Path) -> None:
    tensors = _tune()
    torch.save(tensors, tmp_path / "model-00001-of-00001.bin")
    torch.save({"layers.0.attn.q_proj.lora_a.weight": torch.ones(2, 8)}, tmp_path / "adapter_model.pt")
    assert torch.equal(_converted(tmp_path, "llama")["model.norm.weight"], tensors["norm.scale"])


def test_an_adapter_alone_is_carried_to_the_rows_of_its_weight(tmp_path: Path) -> None:
    a, b = torch.randn(2, 8), torch.randn(4, 2)
    factors = {"layers.0.attn.k_proj.lora_a.weight": a, "layers.0.attn.k_proj.lora_b.weight": b}
    torch.save(factors, tmp_path / "adapter_model.pt")
    found = _converted(tmp_path, "llama", lora="adapter", lora_alpha=4)
    stem = "base_model.model.model.layers.0.self_attn.k_proj"
    assert torch.equal(found[f"{stem}.lora_A.weight"], a)
    assert torch.equal(found[f"{stem}.lora_B.weight"], b[_ORDER])


def test_adapters_inside_a_save_are_merged(tmp_path: Path) -> None:
    tensors = _tune()
    a, b = torch.randn(2, 8), torch.randn(4, 2)
    factors = {"layers.0.attn.k_proj.lora_a.weight": a, "layers.0.attn.k_proj.lora_b.weight": b}
    torch.save({**tensors, **factors}, tmp_path / "model-00001-of-00001.bin")
    found = _converted(tmp_path, "llama", lora="merge", lora_alpha=4)
    merged = (tensors["layers.0.attn.k_proj.weight"] + 2 * (b @ a))[_ORDER]
    torch.testing.assert_close(found["model.layers.0.self_attn.k_proj.weight"], merged)
