"""What libraries that train on one CPU save converts to a model that answers as theirs does.

``make test-frameworks`` installs each release into a folder of its own, on demand; a script trains a small
model with the library's own class, saves it with the library's own saver and writes down what it answers.
Logits are equal to 1e-5 of the largest (float32, other kernels); where the library exports to Hugging Face's
form itself, weights are equal bit for bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

pytestmark = pytest.mark.frameworks

_HERE = Path(__file__).parent
_COMMAND = Path(sys.executable).with_name("ckptconv")

_LIT = ("lightning==2.6.1", "lightning-utilities==0.15.3", "torchmetrics==1.9.0", "jsonargparse==4.53.0")
_TYPER = ("tyro==1.0.17", "docstring_parser==0.18.0", "typeguard==4.6.1", "shtab==1.13.0")
_TITAN = ("einops==0.8.2", *_TYPER)
# What is installed together; torch, numpy and the like are those of the tests.
_RELEASES: Mapping[str, tuple[str, ...]] = {
    "litgpt-0.4.13": ("litgpt==0.4.13", *_LIT),
    "litgpt-0.5.13": ("litgpt==0.5.13", *_LIT, "psutil==7.2.2"),
    "ms-swift-4.6.0": ("ms-swift==4.6.0", "megatron-core==0.19.2", "psutil==7.2.2"),
    "olmo-core-3.0.0": (
        *(
            "ai2-olmo-core==3.0.0",
            "dataclass-extensions==0.5.0",
            "bettermap==1.3.1",
            "importlib_resources==7.1.0",
        ),
        "dill==0.4.0",
    ),
    "torchtitan-0.2.2": ("torchtitan==0.2.2", *_TITAN, "torchdata==0.11.0", "tomli==2.2.1"),
    "torchtitan-0.3.0": ("torchtitan==0.3.0", *_TITAN, "torch_checkpointing==0.1.1", "spmd_types==0.2.3"),
    "torchtune-0.6.1": (
        *("torchtune==0.6.1", "torchao==0.13.0", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3"),
        "psutil==7.2.2",
    ),
    "triton": ("triton==3.9.0",),  # large, and only imported
}
_BESIDE = dict.fromkeys(("ms-swift-4.6.0", "torchtitan-0.2.2", "torchtitan-0.3.0"), ("triton",))
_SCRIPTS = {
    "litgpt": "litgpt_save.py",
    "ms-swift": "swift_save.py",
    "olmo": "olmo_save.py",
    "torchtitan-0.2": "torchtitan02_save.py",
    "torchtitan-0.3": "torchtitan_save.py",
    "torchtune": "torchtune_save.py",
}
_CASES = [
    *(("litgpt-0.4.13", name) for name in ("Llama-2-7b-hf", "pythia-14m", "Gemma-2-2b", "Mixtral-8x7B-v0.1")),
    *(("litgpt-0.5.13", name) for name in (
        "Llama-3.2-1B", "pythia-14m", "falcon-7b", "falcon-40b", "phi-2", "Mistral-7B-v0.1", "Gemma-2b",
        "Gemma-2-2b", "Gemma-3-1b-it", "OLMo-1B-hf", "OLMo-2-1124-7B", "Qwen2.5-0.5B", "Qwen3-0.6B",
        "Qwen3-30B-A3B", "Mixtral-8x7B-v0.1", "stablelm-3b-4e1t", "Phi-4-mini-instruct",
    )),
    ("ms-swift-4.6.0", "full"),
    *(("olmo-core-3.0.0", name) for name in ("llama", "qwen3", "olmo2", "olmo3", "olmo3-long")),
    *(("torchtitan-0.2.2", name) for name in ("llama3", "qwen3-moe", "deepseek_v3")),
    *(("torchtitan-0.3.0", name) for name in (
        "llama3", "llama3-tied", "qwen3", "qwen3-moe", "deepseek_v3", "deepseek_v3-mtp"
    )),
    *(("torchtune-0.6.1", name) for name in (
        "llama2-tune", "llama3-tune", "llama3_1-dcp", "llama3_2-tune", "mistral-tune", "qwen2-tune",
        "qwen2_tied-dcp", "phi3-tune", "gemma-tune", "phi3-hf", "qwen2_tied-hf", "llama2-meta", "llama3-lora",
        "llama3-lora_hf", "qwen2-lora",
    )),
]  # fmt: skip


def _run(*command: object, path: str | None = None) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": path} if path is not None else {})}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, env=env, timeout=900
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"


def _library(release: str) -> Path:
    """Return a folder that holds a release of a library and what only it needs."""
    folder = Path(sys.prefix) / "trainers" / release
    if not folder.exists():
        pip = (sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps")
        part = folder.with_suffix(".part")
        _run(*pip, "--ignore-requires-python", "--upgrade", "--target", part, *_RELEASES[release])
        part.rename(folder)
    return folder


def _answer(model: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Return what transformers computes with a converted model, all of whose weights were in the files."""
    made, said = transformers.AutoModelForCausalLM.from_pretrained(
        model, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    # transformers has no layers for multi-token prediction.
    layers = made.config.num_hidden_layers
    unexpected = {n for n in said["unexpected_keys"] if not n.startswith(f"model.layers.{layers}.")}
    assert not (said["missing_keys"] or said["mismatched_keys"] or unexpected), said
    with torch.no_grad():
        return made(tokens).logits


@pytest.mark.parametrize(("release", "name"), _CASES)
def test_a_fresh_save_computes_what_was_trained(release: str, name: str, tmp_path: Path) -> None:
    libraries = [_library(r) for r in (release, *_BESIDE.get(release, ()))]
    script = next(file for start, file in _SCRIPTS.items() if release.startswith(start))
    _run(sys.executable, _HERE / script, name, tmp_path, path=os.pathsep.join(map(str, libraries)))
    own, out = tmp_path / "hf", tmp_path / "out"
    config = ["--config", own] if (own / "config.json").exists() else []
    _run(_COMMAND, "convert", tmp_path / "run", out, "--to", "hf", "--verify", *config)
    answer = torch.load(tmp_path / "answer.pt")
    wanted, found = answer["logits"], _answer(out, answer["tokens"])
    assert (found[..., : wanted.shape[-1]] - wanted).abs().max() < 1e-5 * max(1.0, wanted.abs().max().item())
    if (own / "model.safetensors").exists():
        ours = {n: t for file in out.glob("*.safetensors") for n, t in load_file(file).items()}
        theirs = load_file(own / "model.safetensors")
        assert [n for n in theirs if n not in ours or not torch.equal(ours[n], theirs[n])] == []
