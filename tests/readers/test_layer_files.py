"""Layer files of GPT-NeoX and Megatron-DeepSpeed go to Hugging Face's form, of one rank or several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ckptconv
from ckptconv.errors import MismatchError, PlanError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
YAML = """\
"num-layers": 2
"hidden-size": 32
num_attention_heads: 4
max-position-embeddings: 64
pos-emb: rotary
no-weight-tying: true
"""
COLUMN = ("word_embeddings.weight", "final_linear", "query_key_value", "dense_h_to_4h", "linear1")
ROW = ("attention.dense.weight", "dense_4h_to_h.weight", "linear2.weight")
ROW_BIAS = ("attention.dense.bias", "dense_4h_to_h.bias")


def _model(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """Save a small model with values that differ everywhere; return its tensors."""
    config = getattr(transformers, f"{name}Config")(**more)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def _cut(name: str, tensor: Any, tp: int, rank: int, *, summed: bool, gated: bool) -> Any:
    if any(word in name for word in COLUMN):
        parts = tensor.chunk(2) if gated and "linear1" in name else [tensor]
        return torch.cat([part.chunk(tp)[rank] for part in parts]).clone()
    if name.endswith(ROW):
        return tensor.chunk(tp, dim=1)[rank].clone()
    if name.endswith(ROW_BIAS) and summed:
        return tensor / tp if tp > 1 else tensor
    return tensor.clone()


def _save(
    run: Path,
    layers: Mapping[int, Mapping[str, Any]],
    tp: int,
    *,
    sequential: bool = False,
    summed: bool = True,
    gated: bool = False,
) -> None:
    """Write a save as DeepSpeed's pipelines do: a file a layer and rank, or all of a rank in one."""
    step = run / "global_step5"
    step.mkdir(parents=True)
    (run / "latest").write_text("global_step5")
    head = {"module": None, "optimizer": None, "param_shapes": None, "global_steps": 5, "ds_config": {}}
    for rank in range(tp):
        cut = {
            number: {n: _cut(n, t, tp, rank, summed=summed, gated=gated) for n, t in tensors.items()}
            for number, tensors in layers.items()
        }
        module = {f"sequential.{k}.{n}": t for k, ts in cut.items() for n, t in ts.items()}
        torch.save(
            {**head, "module": module if sequential else None}, step / f"mp_rank_{rank:02d}_model_states.pt"
        )
        for number, tensors in cut.items() if not sequential else ():
            torch.save(tensors, step / f"layer_{number:02d}-model_{rank:02d}-model_states.pt")


def _neox(tensors: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    layers: dict[int, dict[str, Any]] = {
        0: {"word_embeddings.weight": tensors["gpt_neox.embed_in.weight"]},
        5: {f"norm.{p}": tensors[f"gpt_neox.final_layer_norm.{p}"] for p in ("weight", "bias")},
        6: {"final_linear.weight": tensors["embed_out.weight"]},
    }
    for name, tensor in tensors.items():
        if name.startswith("gpt_neox.layers."):
            number, rest = name.removeprefix("gpt_neox.layers.").split(".", 1)
            layers.setdefault(int(number) + 2, {})[rest] = tensor
    return layers


def _llama(tensors: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    layers: dict[int, dict[str, Any]] = {
        0: {"word_embeddings.weight": tensors["model.embed_tokens.weight"]},
        5: {"norm.scale": tensors["model.norm.weight"]},
        6: {"final_linear.weight": tensors["lm_head.weight"]},
    }
    for number in range(2):
        at = f"model.layers.{number}."
        q, k, v = (tensors[f"{at}self_attn.{p}_proj.weight"].view(4, 8, 32) for p in "qkv")
        up, gate = tensors[at + "mlp.up_proj.weight"], tensors[at + "mlp.gate_proj.weight"]
        layers[number + 2] = {
            "attention.query_key_value.weight": torch.cat([q, k, v], dim=1).reshape(96, 32),
            "attention.dense.weight": tensors[at + "self_attn.o_proj.weight"],
            "mlp.linear1.weight": torch.cat([up, gate]),
            "mlp.linear2.weight": tensors[at + "mlp.down_proj.weight"],
            "input_layernorm.scale": tensors[at + "input_layernorm.weight"],
            "post_attention_layernorm.scale": tensors[at + "post_attention_layernorm.weight"],
        }
    return layers


def _configs(run: Path, text: str) -> None:
    folder = run / "global_step5" / "configs"
    folder.mkdir()
    (folder / "model.yml").write_text(text)


def _same(out: Path, model: Path) -> dict[str, Any]:
    found, answer = (load_file(p / "model.safetensors") for p in (out, model))
    assert found.keys() == answer.keys()
    assert [n for n in found if not torch.equal(found[n], answer[n])] == []
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config


NEOX = {**SIZES, "num_attention_heads": 4, "max_position_embeddings": 64, "rotary_pct": 0.25}


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_ranks_of_gpt_neox_are_joined_and_their_biases_added_up(
    tmp_path: Path, tp: int, sequential: bool
) -> None:
    tensors = _model(tmp_path / "hf", "GPTNeoX", **NEOX)
    _save(tmp_path / "run", _neox(tensors), tp, sequential=sequential)
    _configs(tmp_path / "run", f"{YAML}gpt_j_residual: true\nrotary_pct: 0.25\n")
    ckptconv.convert(tmp_path / "run", tmp_path / "out")
    config = _same(tmp_path / "out", tmp_path / "hf")
    assert (config["model_type"], config["use_parallel_residual"]) == ("gpt_neox", True)
    assert (config["rotary_pct"], config["intermediate_size"], config["vocab_size"]) == (0.25, 64, 64)
    assert ckptconv.diff(tmp_path / "run", tmp_path / "hf").ok


def test_biases_that_count_once_are_compared(tmp_path: Path) -> None:
    tensors = _model(tmp_path / "hf", "GPTNeoX", **NEOX, use_parallel_residual=False)
    _save(tmp_path / "run", _neox(tensors), 2, summed=False)
    _configs(tmp_path / "run", f"{YAML}gpt_j_residual: false\nrotary_pct: 0.25\n")
    ckptconv.convert(tmp_path / "run", tmp_path / "out")
    assert _same(tmp_path / "out", tmp_path / "hf")["use_parallel_residual"] is False
    file = tmp_path / "run" / "global_step5" / "layer_02-model_01-model_states.pt"
    state = torch.load(file)
    state["attention.dense.bias"] += 1
    torch.save(state, file)
    with pytest.raises(MismatchError):
        ckptconv.convert(tmp_path / "run", tmp_path / "out2")


def test_whether_biases_are_added_up_is_asked_where_nothing_tells(tmp_path: Path) -> None:
    _save(tmp_path / "run", _neox(_model(tmp_path / "hf", "GPTNeoX", **NEOX)), 2)
    with pytest.raises(PlanError, match="biases") as caught:
        ckptconv.convert(tmp_path / "run", tmp_path / "out", config=str(tmp_path / "hf"))
    assert "configs" in (caught.value.hint or "")


@pytest.mark.parametrize("tp", [1, 2])
def test_llama_in_gpt_neox(tmp_path: Path, tp: int) -> None:
    more = {"num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 5e5}
    tensors = _model(tmp_path / "hf", "Llama", **SIZES, **more, max_position_embeddings=64)
    _save(tmp_path / "run", _llama(tensors), tp, gated=True)
    text = f"{YAML}norm: rmsnorm\nrms_norm_epsilon: 1.0e-5\nactivation: swiglu\nrotary_emb_base: 500000\n"
    _configs(tmp_path / "run", text)
    ckptconv.convert(tmp_path / "run", tmp_path / "out")
    config = _same(tmp_path / "out", tmp_path / "hf")
    assert (config["model_type"], config["rms_norm_eps"], config["rope_theta"]) == ("llama", 1e-5, 5e5)


def test_a_rank_of_a_layer_that_is_missing_is_named(tmp_path: Path) -> None:
    _save(tmp_path / "run", _neox(_model(tmp_path / "hf", "GPTNeoX", **NEOX)), 2)
    (tmp_path / "run" / "global_step5" / "layer_03-model_01-model_states.pt").unlink()
    with pytest.raises(PlanError, match="layer_03-model_01"):
        ckptconv.convert(tmp_path / "run", tmp_path / "out", config=str(tmp_path / "hf"))


@pytest.mark.parametrize("tp", [1, 2])
def test_the_layers_of_bloom(tmp_path: Path, tp: int) -> None:
    tensors = _model(tmp_path / "hf", "Bloom", vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    bare = {n.removeprefix("transformer."): t for n, t in tensors.items()}
    layers: dict[int, dict[str, Any]] = {
        1: {
            "word_embeddings.weight": bare["word_embeddings.weight"],
            "word_embeddings.norm.weight": bare["word_embeddings_layernorm.weight"],
            "word_embeddings.norm.bias": bare["word_embeddings_layernorm.bias"],
        },
        6: {"weight": bare["ln_f.weight"], "bias": bare["ln_f.bias"]},
    }
    for name, tensor in bare.items():
        if name.startswith("h."):
            number, rest = name.removeprefix("h.").split(".", 1)
            layers.setdefault(int(number) + 3, {})[rest] = tensor
    _save(tmp_path / "run", layers, tp, summed=False)
    ckptconv.convert(tmp_path / "run", tmp_path / "out", config=str(tmp_path / "hf"))
    _same(tmp_path / "out", tmp_path / "hf")
