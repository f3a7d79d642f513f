"""Qwen2-VL as MindSpeed-MM cuts it goes to Hugging Face and back: two stacks of layers, numbered apart.

The cuts are written after MindSpeed-MM 57069cd5, ``checkpoint/vlm_model/converters/qwen2vl.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptconv

Tensors = dict[str, torch.Tensor]
TP, VIT, LLM = 2, (2, 0), (1, 2)
HEADS, GROUPS, VISION_HEADS = 4, 2, 4
CONFIG = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 2,
        "embed_dim": 8,
        "hidden_size": 16,
        "num_heads": VISION_HEADS,
        "mlp_ratio": 3,
        "patch_size": 2,
    },
}


def _model() -> Tensors:
    """Return a Qwen2-VL as it is published."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (24, 16),
        "model.norm.weight": (16,),
        "lm_head.weight": (24, 16),
        "visual.patch_embed.proj.weight": (8, 3, 2, 2, 2),
    }

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    for layer in range(3):
        at = f"model.layers.{layer}."
        for part, rows in (("q", 16), ("k", 8), ("v", 8)):
            linear(f"{at}self_attn.{part}_proj", rows, 16)
        linear(f"{at}self_attn.o_proj", 16, 16, bias=False)
        for part, rows, columns in (("gate", 24, 16), ("up", 24, 16), ("down", 16, 24)):
            linear(f"{at}mlp.{part}_proj", rows, columns, bias=False)
        shapes |= {f"{at}{n}_layernorm.weight": (16,) for n in ("input", "post_attention")}
    for layer in range(2):
        at = f"visual.blocks.{layer}."
        for name, rows, columns in (
            ("attn.qkv", 24, 8),
            ("attn.proj", 8, 8),
            ("mlp.fc1", 24, 8),
            ("mlp.fc2", 8, 24),
        ):
            linear(f"{at}{name}", rows, columns)
        shapes |= {f"{at}{n}.{leaf}": (8,) for n in ("norm1", "norm2") for leaf in ("weight", "bias")}
    linear("visual.merger.mlp.0", 32, 32)
    linear("visual.merger.mlp.2", 16, 32)
    shapes |= {f"visual.merger.ln_q.{leaf}": (8,) for leaf in ("weight", "bias")}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def _by_group(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: int) -> torch.Tensor:
    parts = [t.reshape(groups, -1, *t.shape[1:]) for t in (q, k, v)]
    return torch.cat(parts, 1).flatten(0, 1)


def _rows(t: torch.Tensor) -> list[torch.Tensor]:
    return list(t.chunk(TP, 0))


def _columns(t: torch.Tensor) -> list[torch.Tensor]:
    return list(t.chunk(TP, 1))


def _gated(t: torch.Tensor) -> list[torch.Tensor]:
    gates, ups = (half.chunk(TP, 0) for half in t.chunk(2, 0))
    return [torch.cat(pair) for pair in zip(gates, ups, strict=True)]


def _whole(t: torch.Tensor) -> list[torch.Tensor]:
    return [t] * TP


Cut = Callable[[torch.Tensor], list[torch.Tensor]]


def _as_published(hf: Tensors, found: dict[str, list[torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
    """Return the same with ``enable_canonical_hf_struct``: nothing is packed anew."""
    packed = ("self_attention.linear_qkv", "mlp.linear_fc1.weight")
    text = "text_decoder.decoder.layers."
    found = {n: c for n, c in found.items() if not (n.startswith(text) and any(p in n for p in packed))}
    for layer in range(3):
        old, new = f"model.layers.{layer}.", f"{text}{layer}."
        for part in "qkv":
            for leaf in ("weight", "bias"):
                name = f"self_attn.{part}_proj.{leaf}"
                found[f"{new}self_attention.{part}_proj.{leaf}"] = _rows(hf[old + name])
        for part in ("gate", "up"):
            found[f"{new}mlp.{part}_proj.weight"] = _rows(hf[f"{old}mlp.{part}_proj.weight"])
    for layer in range(2):
        for leaf in ("weight", "bias"):
            name = f"image_encoder.encoder.blocks.layers.{layer}.self_attention.linear_qkv.{leaf}"
            found[name] = _rows(hf[f"visual.blocks.{layer}.attn.qkv.{leaf}"])
    return found


def _cut(hf: Tensors) -> dict[str, list[torch.Tensor]]:
    """Return the tensors of MindSpeed-MM, layers numbered through the model, each cut over ranks."""
    found: dict[str, list[torch.Tensor]] = {
        "text_decoder.embedding.word_embeddings.weight": _rows(hf["model.embed_tokens.weight"]),
        "text_decoder.decoder.final_layernorm.weight": _whole(hf["model.norm.weight"]),
        "text_decoder.output_layer.weight": _rows(hf["lm_head.weight"]),
        "image_encoder.encoder.patch_embed.proj.weight": _whole(hf["visual.patch_embed.proj.weight"]),
        "image_encoder.projector.encoder.linear_fc1.weight": _rows(hf["visual.merger.mlp.0.weight"]),
        "image_encoder.projector.encoder.linear_fc1.bias": _rows(hf["visual.merger.mlp.0.bias"]),
        "image_encoder.projector.encoder.linear_fc2.weight": _columns(hf["visual.merger.mlp.2.weight"]),
        "image_encoder.projector.encoder.linear_fc2.bias": _whole(hf["visual.merger.mlp.2.bias"]),
    }
    for leaf in ("weight", "bias"):
        found[f"image_encoder.projector.layernorm.{leaf}"] = _whole(hf[f"visual.merger.ln_q.{leaf}"])
    for layer in range(3):
        old, new = f"model.layers.{layer}.", f"text_decoder.decoder.layers.{layer}."
        for leaf in ("weight", "bias"):
            qkv = (hf[f"{old}self_attn.{part}_proj.{leaf}"] for part in "qkv")
            found[f"{new}self_attention.linear_qkv.{leaf}"] = _rows(_by_group(*qkv, GROUPS))
        gate_up = torch.cat([hf[f"{old}mlp.{part}_proj.weight"] for part in ("gate", "up")])
        found |= {
            f"{new}self_attention.linear_proj.weight": _columns(hf[f"{old}self_attn.o_proj.weight"]),
            f"{new}mlp.linear_fc1.weight": _gated(gate_up),
            f"{new}mlp.linear_fc2.weight": _columns(hf[f"{old}mlp.down_proj.weight"]),
            f"{new}input_layernorm.weight": _whole(hf[f"{old}input_layernorm.weight"]),
            f"{new}pre_mlp_layernorm.weight": _whole(hf[f"{old}post_attention_layernorm.weight"]),
        }
    for layer in range(2):
        old, new = f"visual.blocks.{layer}.", f"image_encoder.encoder.blocks.layers.{layer}."
        for leaf in ("weight", "bias"):
            qkv = hf[f"{old}attn.qkv.{leaf}"].chunk(3)
            whole_or = _columns if leaf == "weight" else _whole
            found |= {
                f"{new}self_attention.linear_qkv.{leaf}": _rows(_by_group(*qkv, VISION_HEADS)),
                f"{new}self_attention.linear_proj.{leaf}": whole_or(hf[f"{old}attn.proj.{leaf}"]),
                f"{new}mlp.linear_fc1.{leaf}": _rows(hf[f"{old}mlp.fc1.{leaf}"]),
                f"{new}mlp.linear_fc2.{leaf}": whole_or(hf[f"{old}mlp.fc2.{leaf}"]),
                f"{new}input_layernorm.{leaf}": _whole(hf[f"{old}norm1.{leaf}"]),
                f"{new}pre_mlp_layernorm.{leaf}": _whole(hf[f"{old}norm2.{leaf}"]),
            }
    return found


def _stage(name: str) -> tuple[int, str]:
    """Return the stage a tensor lies on, and its name there."""
    for stem, sizes in (("image_encoder.encoder.blocks.layers.", VIT), ("text_decoder.decoder.layers.", LLM)):
        if name.startswith(stem):
            number, _, rest = name.removeprefix(stem).partition(".")
            stage = 0 if int(number) < sizes[0] else 1
            return stage, f"{stem}{int(number) - stage * sizes[0]}.{rest}"
    last = name.startswith(("text_decoder.decoder.final", "text_decoder.output"))
    return int(last), name


@pytest.fixture(scope="module", params=["packed", "canonical"])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tensors, dict[str, Tensors]]:
    """A run of two tensor and two pipeline parallel ranks, the model, and what lies in each file."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mm")
    model = _model()
    files: dict[str, Tensors] = {}
    held = _cut(model)
    if request.param == "canonical":
        held = _as_published(model, held)
    for name, cuts in held.items():
        stage, local = _stage(name)
        for rank, part in enumerate(cuts):
            files.setdefault(f"mp_rank_{rank:02d}_{stage:03d}", {})[local] = part.contiguous()
    for name, own in files.items():
        place = folder / "run" / "release" / name
        place.mkdir(parents=True)
        torch.save({"model": own, "checkpoint_version": 3.0}, place / "model_optim_rng.pt")
    (folder / "run" / "latest_checkpointed_iteration.txt").write_text("release")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, model, files


def test_both_stacks_go_to_hugging_face(
    run: tuple[Path, Tensors, dict[str, Tensors]], tmp_path: Path
) -> None:
    folder, model, _ = run
    ckptconv.convert(folder / "run", tmp_path / "out", config=str(folder))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == model.keys()
    assert [n for n in found if not torch.equal(found[n], model[n])] == []


def test_and_back_as_the_run_has_them(run: tuple[Path, Tensors, dict[str, Tensors]], tmp_path: Path) -> None:
    folder, _, files = run
    ckptconv.convert(folder / "run", tmp_path / "hf", config=str(folder))
    ckptconv.convert(tmp_path / "hf", tmp_path / "back", to="megatron", like=str(folder / "run"))
    for name, held in files.items():
        [file] = (tmp_path / "back").rglob(f"{name}/model_optim_rng.pt")
        found = torch.load(file, weights_only=False)["model"]
        assert found.keys() == held.keys(), name
        assert [n for n in held if not torch.equal(found[n], held[n])] == []
