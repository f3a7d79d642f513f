"""A package of a stranger brings one of each kind; a broken one stops nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from running import ROOT, Result

PACKAGE = Path(__file__).parent / "package"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the package is installed in, by pip."""
    folder = tmp_path_factory.mktemp("site")
    words = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", folder)
    subprocess.run([sys.executable, *words, PACKAGE], check=True)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of the plug-in's family."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "model_type": "zoo"}))
    return folder


def run(site: Path, *words: object, **more: str) -> Result:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), **more}
    code = [sys.executable, "-m", "ckptconv", *map(str, words)]
    done = subprocess.run(code, capture_output=True, text=True, env=env, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def succeeds(site: Path, *words: object, **more: str) -> Result:
    found = run(site, *words, **more)
    assert found.code == 0, found.err
    return found


def test_reader_writer_container_and_engine(site: Path, model: Path, tmp_path: Path) -> None:
    for letters in ("upper", "lower"):
        out = tmp_path / letters
        asked = ("--to", "zoo", "--letters", letters, "--engine", "zoo", "--verify")
        succeeds(site, "convert", model, out, *asked)
        assert b"LM_HEAD.WEIGHT" in (out / "model.zoo").read_bytes() or letters == "lower"
        succeeds(site, "convert", out, tmp_path / f"{letters}-back", "--to", "hf", "--config", model)
        back = load_file(tmp_path / f"{letters}-back" / "model.safetensors")
        for name, tensor in load_file(model / "model.safetensors").items():
            assert torch.equal(back[name], tensor)


def test_family_and_dialect(site: Path, model: Path, tmp_path: Path) -> None:
    succeeds(site, "megatron-split", model, tmp_path / "run", "--tp", "2", "--dialect", "zoo", "--no-assets")
    told = json.loads(succeeds(site, "inspect", tmp_path / "run", "--json").out)
    assert any("zoo.embedding" in t["name"] for t in told["tensors"])
    succeeds(site, "megatron-merge", tmp_path / "run", tmp_path / "out", "--config", model, "--verify")


def test_a_codec(site: Path, model: Path, tmp_path: Path) -> None:
    held = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    codes = torch.arange(24 * 16, dtype=torch.int32).to(torch.uint8).reshape(24, 16)
    values = ((codes.float() - 128) * 0.02).bfloat16()
    source = tmp_path / "source"
    source.mkdir()
    said = json.loads((model / "config.json").read_text())
    said["quantization_config"] = {"quant_method": "zoo"}
    (source / "config.json").write_text(json.dumps(said))
    del held[f"{name}.weight"]
    coded = {**held, f"{name}.zoo_codes": codes, f"{name}.zoo_step": torch.tensor(0.02)}
    save_file(coded, source / "model.safetensors", {"format": "pt"})
    succeeds(site, "convert", source, tmp_path / "out", "--to", "hf", "--dequantize", "--verify")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"], values)
    told = json.loads(succeeds(site, "inspect", source, "--json").out)
    assert told["quantised"] == ["the zoo's bytes (1 weight)"]
    refused = run(tmp_path, "convert", source, tmp_path / "none", "--to", "hf", "--dequantize")
    assert refused.code == 4 and "zoo" in refused.err


def test_a_flag_of_a_plug_in_is_refused_elsewhere(site: Path, model: Path, tmp_path: Path) -> None:
    found = run(site, "convert", model, tmp_path / "out", "--to", "hf", "--letters", "upper")
    assert found.code == 2
    assert "--letters" in found.err and "--to zoo" in found.err


def test_what_is_broken_is_a_warning_by_name(site: Path, model: Path, tmp_path: Path) -> None:
    found = succeeds(site, "convert", model, tmp_path / "out", "--to", "hf")
    assert "warning: plug-in 'broken' of ckptconv-zoo" in found.err and "this plug-in is broken" in found.err
    assert "'wrong'" in found.err and "not a Family" in found.err
    assert found.err.count("'broken'") == 1


def test_one_of_our_own_is_replaced_only_when_asked(site: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    other.mkdir()
    said = json.loads((model / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**said, "model_type": "llama_of_the_zoo"}))
    save_file(load_file(model / "model.safetensors"), other / "model.safetensors", {"format": "pt"})
    words = ("megatron-split", other, tmp_path / "run", "--tp", "2", "--no-assets")
    assert run(site, *words).code == 4
    succeeds(site, *words, CKPTCONV_REPLACE="families:llama")
    named = run(site, *words, "--overwrite", CKPTCONV_REPLACE="families:lama")
    assert "families:lama" in named.err
