"""Data under several names: the embedding keeps its own, and what nothing ties is written twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptconv.planning.shared import first_names
from loads import assert_loads
from running import ckptconv, succeeds


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"], 1),
        (["proj_out.weight", "model.decoder.embed_tokens.weight"], 1),
        (
            ["lm_head.weight", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "shared.weight"],
            3,
        ),
        (["embed_out.weight", "gpt_neox.embed_in.weight"], 1),
        (["model.layers.61.embed_tokens.weight", "model.embed_tokens.weight"], 1),
        (["cls.predictions.decoder.bias", "cls.predictions.bias"], 1),
        (["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"], 0),
        (["model.layers.10.a.weight", "model.layers.2.weight"], 0),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_the_name_that_loaders_look_for_is_kept(names: list[str], best: int) -> None:
    for first in range(len(names)):
        kept, *rest = names[first:] + names[:first]
        found = first_names([kept], dict.fromkeys(rest, kept), None)
        if best or first == 0:  # of equals the first stays
            assert found.get(kept, kept) == names[best]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tied")
    made = LlamaForCausalLM(config)
    made.save_pretrained(folder)
    torch.save(dict(reversed(made.state_dict().items())), folder / "reversed.pt")
    return folder


def test_a_state_dict_that_lists_the_head_first(model: Path, tmp_path: Path) -> None:
    succeeds("convert", model / "reversed.pt", tmp_path / "out", "--to", "hf", "--config", model)
    written, expected = (load_file(f / "model.safetensors") for f in (tmp_path / "out", model))
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[n], expected[n]) for n in expected)
    assert_loads(tmp_path / "out")


def test_what_is_shared_without_a_tie_is_written_twice(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    one, two = (f"model.layers.{i}.mlp.up_proj.weight" for i in (1, 0))
    tensors[two] = tensors[one]
    torch.save(tensors, tmp_path / "shared.pt")
    out = tmp_path / "out"
    succeeds("convert", tmp_path / "shared.pt", out, "--to", "hf", "--config", model)
    written = load_file(out / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert torch.equal(written[one], tensors[one]) and torch.equal(written[two], tensors[one])
    assert_loads(out)
    succeeds("verify-roundtrip", tmp_path / "shared.pt", out, "--config", model)
    succeeds("verify-roundtrip", tmp_path / "shared.pt", out)
    written[two][0, 0] += 1
    save_file(written, out / "model.safetensors")
    damaged = ckptconv("verify-roundtrip", tmp_path / "shared.pt", out)
    assert damaged.code == 3 and two in damaged.out
