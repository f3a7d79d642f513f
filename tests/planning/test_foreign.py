"""A model whose names are foreign is not passed through; what wraps its names is taken off."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loads import assert_loads
from running import ckptconv as command
from running import fails, succeeds

Names = Callable[[str], str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def renamed(model: Path, folder: Path, names: Names, more: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Save the model's tensors as a plain file under other names."""
    tensors = {names(n): t for n, t in load_file(model / "model.safetensors").items()}
    folder.mkdir(exist_ok=True)
    torch.save({**tensors, **(more or {})}, folder / "weights.pt")
    return folder / "weights.pt"


@pytest.mark.parametrize(
    "names",
    [
        lambda n: f"model.{n}",
        lambda n: f"_forward_module.{n}",
        lambda n: f"_forward_module.model.{n}",
        lambda n: f"module._orig_mod.{n}",
        lambda n: f"pretrained_model.{n}",
        lambda n: f"state.model.{n}",
        lambda n: f"actor.net.{n}",
        lambda n: f"0.auto_model.{n}",
    ],
    ids=["lightning", "fabric", "deepspeed", "ddp", "trl", "composer", "own", "sentence"],
)
def test_one_common_prefix_and_known_wrappers_are_taken_off(
    model: Path, tmp_path: Path, names: Names
) -> None:
    source = renamed(model, tmp_path / "in", names, {"metric.total": torch.ones(1)})
    succeeds("convert", source, tmp_path / "out", "--to", "hf", "--config", model)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(model / "model.safetensors").items():
        assert torch.equal(written[name], tensor)
    assert_loads(tmp_path / "out", beyond=("metric.",))


def test_names_of_the_body_get_their_prefix_where_that_makes_them_fit(model: Path, tmp_path: Path) -> None:
    source = renamed(model, tmp_path / "in", lambda n: n.removeprefix("model."))
    succeeds("convert", source, tmp_path / "out", "--to", "hf", "--config", model)
    assert_loads(tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "naming"),
    [
        (lambda n: f"base_model.model.{n}", ("PEFT", "--lora merge", "--lora adapter")),
        (lambda n: n.replace(".", "_") + ".w", ("none of the 21 parameters", "--rename")),
    ],
    ids=["peft", "unknown"],
)
def test_foreign_names_are_refused_by_name(
    model: Path, tmp_path: Path, names: Names, naming: tuple[str, ...]
) -> None:
    factors = {f"base_model.model.x.q_proj.lora_{p}.default.weight": torch.ones(2, 2) for p in "AB"}
    more = factors if "PEFT" in naming else {}
    source = renamed(model, tmp_path / "in", names, more)
    out = tmp_path / "out"
    fails(4, "convert", source, out, "--to", "hf", "--config", model, naming=naming, out=out)
    assert command("verify-roundtrip", source, model, "--config", model).code == 3


def test_what_a_model_lacks_is_refused_and_named(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    lacking = "model.layers.1.mlp.up_proj.weight"
    (tmp_path / "in").mkdir()
    save_file({n: t for n, t in tensors.items() if n != lacking}, tmp_path / "in" / "model.safetensors")
    out = tmp_path / "out"
    flags = ("--to", "hf", "--config", model)
    fails(4, "convert", tmp_path / "in", out, *flags, naming=(lacking, "random", "--no-assets"), out=out)
    assert lacking in succeeds("convert", tmp_path / "in", out, *flags, "--no-assets").err


def test_the_head_of_a_critic_stands_in_place_of_the_one_for_tokens(model: Path, tmp_path: Path) -> None:
    given = tmp_path / "critic"
    given.mkdir()
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["LlamaForTokenClassification"], "num_labels": 1}
    (given / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    head = {"score.weight": torch.ones(1, 16), "score.bias": torch.ones(1)}
    torch.save({n: t for n, t in {**tensors, **head}.items() if n != "lm_head.weight"}, given / "w.pt")
    result = succeeds("convert", given / "w.pt", tmp_path / "out", "--to", "hf", "--config", given)
    assert "lm_head" not in result.err
    assert_loads(tmp_path / "out")


@pytest.mark.parametrize(("bias", "kind"), [(True, "Token"), (False, "Sequence")])
def test_a_critic_under_the_config_it_began_with(model: Path, tmp_path: Path, bias: bool, kind: str) -> None:
    head = {"score.weight": torch.ones(1, 16), **({"score.bias": torch.ones(1)} if bias else {})}
    tensors = {n: t for n, t in load_file(model / "model.safetensors").items() if n != "lm_head.weight"}
    torch.save({**tensors, **head}, tmp_path / "w.pt")
    succeeds("convert", tmp_path / "w.pt", tmp_path / "out", "--to", "hf", "--config", model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [f"LlamaFor{kind}Classification"] and len(config["id2label"]) == 1
    assert_loads(tmp_path / "out")
    succeeds("verify-roundtrip", tmp_path / "w.pt", tmp_path / "out", "--config", model)


def test_without_a_table_transformers_itself_is_asked(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8,
        patch_size=4,
    )  # fmt: skip
    model = tmp_path / "vit"
    ViTForImageClassification(config).save_pretrained(model)
    succeeds("convert", model, tmp_path / "out", "--to", "hf")
    assert_loads(tmp_path / "out")
    source = renamed(model, tmp_path / "in", lambda n: n.replace(".", "_"))
    fails(4, "convert", source, tmp_path / "bad", "--to", "hf", "--config", model, naming=("none of the",))


def test_names_inside_the_layers_that_the_config_has_no_place_for(model: Path, tmp_path: Path) -> None:
    norm = {"model.layers.1.self_attn.q_norm.weight": torch.ones(8)}
    source = renamed(model, tmp_path / "in", str, norm)
    flags = ("--to", "hf", "--config", model)
    fails(4, "convert", source, tmp_path / "no", *flags, naming=("q_norm", "--config"))
    harmless = {
        "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.2.eh_proj.weight": torch.ones(8),  # of a layer beyond those the config counts
        "v_head.summary.weight": torch.ones(1, 16),
    }
    source = renamed(model, tmp_path / "fine", str, harmless)
    succeeds("convert", source, tmp_path / "out", *flags)
