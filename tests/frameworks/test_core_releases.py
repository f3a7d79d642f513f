"""What releases of megatron-core save in torch_dist converts to the model they held, without a word of ours.

``make test-frameworks`` installs each release into a folder of its own, on demand; ``core_release.py`` saves.
0.12 does not save with the torch of today: its writer calls what torch has changed since.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

pytestmark = pytest.mark.frameworks

_RECIPE = Path(__file__).with_name("core_release.py")
_COMMAND = Path(sys.executable).with_name("ckptconv")
# 0.17 and later ask for Python 3.12, but run on 3.11 too; 0.18 and later import triton.
_RELEASES = ("0.13.1", "0.14.0", "0.15.3", "0.16.1", "0.17.1", "0.18.2", "0.19.2")
_TRITON = ("0.18", "0.19")


def _run(*command: object, path: Path | None = None) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": str(path)} if path is not None else {})}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, env=env, timeout=600
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _core(release: str) -> Path:
    """Return a folder that holds a release of megatron-core and nothing else of its kind."""
    folder = Path(sys.prefix) / "megatron-core" / release
    if not folder.exists():
        more = ["triton"] if release.startswith(_TRITON) else []
        pip = (sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps")
        _run(*pip, "--ignore-requires-python", "--target", folder, f"megatron-core=={release}", *more)
    return folder


@pytest.mark.parametrize("release", _RELEASES)
def test_a_save_of_this_release_converts(model: Path, release: str, tmp_path: Path) -> None:
    _run(sys.executable, _RECIPE, model, tmp_path / "run", path=_core(release))
    _run(_COMMAND, "convert", tmp_path / "run", tmp_path / "out", "--to", "hf", "--verify")
    found, wanted = (load_file(p / "model.safetensors") for p in (tmp_path / "out", model))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], wanted[n]) for n in found)
