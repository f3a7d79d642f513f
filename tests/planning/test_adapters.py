"""Adapters: rows for new tokens, resized embeddings, and alpha wherever the producer left it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loads import assert_loads
from running import fails, succeeds

Tensors = dict[str, torch.Tensor]
PREFIX = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def wrapped(base: Path) -> Tensors:
    """Return what PEFT 0.21 makes of a model's state dict, with an adapter of rank 2 on one weight."""
    torch.manual_seed(1)
    tensors = {
        PREFIX + n.replace(f"{Q}.", f"{Q}.base_layer."): t
        for n, t in load_file(base / "model.safetensors").items()
    }
    tensors[f"{PREFIX}{Q}.lora_A.default.weight"] = torch.randn(2, 16)
    tensors[f"{PREFIX}{Q}.lora_B.default.weight"] = torch.randn(16, 2)
    return tensors


def product(tensors: Tensors) -> torch.Tensor:
    a, b = (tensors[f"{PREFIX}{Q}.lora_{p}.default.weight"] for p in "AB")
    return b @ a


def saved(tensors: Tensors, folder: Path, **config: Any) -> Path:
    folder.mkdir()
    torch.save(tensors, folder / "model.pt")
    if config:
        said = {"peft_type": "LORA", "lora_alpha": 4, "r": 2, **config}
        (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder / "model.pt"


@pytest.mark.parametrize("indices", [[3, 30, 0], {"embed_tokens": [31, 5]}], ids=["list", "by module"])
def test_rows_of_new_tokens_are_put_in_place(base: Path, tmp_path: Path, indices: Any) -> None:
    numbers = indices if isinstance(indices, list) else indices["embed_tokens"]
    tensors, at = wrapped(base), f"{PREFIX}model.embed_tokens"
    rows = torch.randn(len(numbers), 16)
    embed = tensors.pop(f"{at}.weight")
    tensors[f"{at}.token_adapter.base_layer.weight"] = embed
    tensors[f"{at}.token_adapter.trainable_tokens_delta.default"] = rows
    source = saved(tensors, tmp_path / "run", trainable_token_indices=indices)
    succeeds("convert", source, tmp_path / "out", "--to", "hf", "--lora", "merge", "--config", base)
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = embed.clone()
    expected[numbers] = rows
    assert torch.equal(written["model.embed_tokens.weight"], expected)
    assert_loads(tmp_path / "out")
    alone = tmp_path / "alone"
    succeeds("convert", source, alone, "--to", "hf", "--lora", "adapter", "--config", base)
    name = f"{at}.token_adapter.trainable_tokens_delta"
    assert torch.equal(load_file(alone / "adapter_model.safetensors")[name], rows)
    (tmp_path / "run" / "adapter_config.json").unlink()
    flags = ("--to", "hf", "--lora", "merge", "--lora-alpha", "4", "--config", base)
    fails(4, "convert", source, tmp_path / "no", *flags, naming=("trainable_token_indices",))


def test_a_resized_embedding_is_kept_with_the_adapter(base: Path, tmp_path: Path) -> None:
    tensors = wrapped(base)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[PREFIX + name] = torch.cat([tensors[PREFIX + name], torch.ones(3, 16)])
    source = saved(tensors, tmp_path / "run", base_model_name_or_path=str(base))
    succeeds("convert", source, tmp_path / "out", "--to", "hf", "--lora", "adapter", "--config", base)
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(written) == 4 and written[PREFIX + "lm_head.weight"].shape == (35, 16)
    same = saved(wrapped(base), tmp_path / "same", base_model_name_or_path="not/here")
    flags = ("--to", "hf", "--lora", "adapter", "--config", base)
    assert "not/here" in succeeds("convert", same, tmp_path / "plain", *flags).err
    assert len(load_file(tmp_path / "plain" / "adapter_model.safetensors")) == 2


def test_added_rows_are_kept_where_the_base_model_is_not_here(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    LlamaForCausalLM(LlamaConfig(vocab_size=132, **sizes)).save_pretrained(tmp_path / "grown")
    for added in (0, 4):
        tensors = wrapped(tmp_path / "grown")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            rows = tensors[PREFIX + name]
            rows[132 - added :] = rows[: 132 - added].mean(0)  # as resize_token_embeddings makes them
        source = saved(tensors, tmp_path / f"run{added}", base_model_name_or_path="not/here")
        out = tmp_path / f"out{added}"
        flags = ("--to", "hf", "--lora", "adapter", "--config", tmp_path / "grown")
        said = succeeds("convert", source, out, *flags).err
        assert "not/here" in said
        assert len(load_file(out / "adapter_model.safetensors")) == (4 if added else 2)


def test_what_was_trained_beside_an_adapter_is_said(base: Path, tmp_path: Path) -> None:
    tensors = {f"pretrained_model.{n}": t for n, t in wrapped(base).items()}
    tensors["v_head.summary.weight"] = torch.ones(1, 16)
    source = saved(tensors, tmp_path / "run", base_model_name_or_path=str(base))
    flags = ("--to", "hf", "--config", base)
    said = succeeds("convert", source, tmp_path / "out", *flags, "--lora", "adapter").err
    assert "v_head.summary.weight" in said and "--lora merge" in said
    succeeds("convert", source, tmp_path / "merged", *flags, "--lora", "merge")
    assert "v_head.summary.weight" in load_file(tmp_path / "merged" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lora_train_meta.json", json.dumps({"r": 2, "lora_alpha": 6, "task_type": "CAUSAL_LM"})),
        ("lora_adapter/adapter_config.json", json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6})),
        ("args.json", json.dumps({"lora_rank": 2, "lora_alpha": 6})),
        ("mindformers_adapter_config.json", json.dumps({"rank": 2, "alpha": 6})),
        ("run_config.yaml", "peft:\n  dim: 2\n  alpha: 6\n"),
    ],
)
def test_alpha_is_found_where_the_producer_left_it(
    base: Path, tmp_path: Path, name: str, content: str
) -> None:
    tensors = wrapped(base)
    source = saved(tensors, tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_text(content)
    succeeds("convert", source, tmp_path / "out", "--to", "hf", "--lora", "merge", "--config", base)
    expected = load_file(base / "model.safetensors")[f"{Q}.weight"] + 3 * product(tensors)
    written = load_file(tmp_path / "out" / "model.safetensors")[f"{Q}.weight"]
    torch.testing.assert_close(written, expected)


def test_a_head_that_drifted_from_its_embedding_is_written_and_the_flag_is_false(
    base: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    config = {**json.loads((base / "config.json").read_text()), "tie_word_embeddings": True}
    (given / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    torch.save(tensors, given / "same.pt")
    tensors["lm_head.weight"][-1, -1] += 1
    torch.save(tensors, given / "other.pt")
    for name, tied in (("same", True), ("other", False)):
        out = tmp_path / name
        result = succeeds("convert", given / f"{name}.pt", out, "--to", "hf")
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is tied
        assert ("lm_head.weight" in load_file(out / "model.safetensors")) is not tied
        assert ("they differ" in " ".join(result.err.split())) is not tied
        assert_loads(out)
        succeeds("verify-roundtrip", given / f"{name}.pt", out)
