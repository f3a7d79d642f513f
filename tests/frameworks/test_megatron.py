"""What megatron-core writes today converts to the model it ran; what is written for it loads there.

``make test-frameworks`` installs megatron-core; ``megatron_recipe.py`` makes every family anew, on CPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from frameworks.megatron_recipe import FAMILIES, Layout
from running import assert_equal, loaded

pytestmark = pytest.mark.frameworks

_RECIPE = Path(__file__).with_name("megatron_recipe.py")
_COMMAND = Path(sys.executable).with_name("ckptconv")
_CASES = [(name, key) for name, family in FAMILIES.items() for key in family.layouts]
_LEGACY = [case for case in _CASES if case[1].startswith("torch_tp")]
_DIST = [case for case in _CASES if case[1].startswith("torch_dist_")]
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def _run(*command: object) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make all layouts of a family, once."""
    root = tmp_path_factory.mktemp("megatron")

    def made(name: str) -> Path:
        if not (root / name).exists():
            _run(sys.executable, _RECIPE, "make", root, name)
        return root / name

    return made


def _sizes(layout: Layout) -> list[str]:
    """Return the flags that say how many ranks there are."""
    flags = [f"--tp={layout.tp}", f"--pp={layout.pp}"]
    flags += [f"--vpp={layout.vpp}"] if layout.vpp > 1 else []
    flags += [f"--ep={layout.ep}"] if layout.ep > 1 else []
    return flags + ([f"--etp={layout.etp}"] if layout.etp is not None else [])


def _assert_same_model(out: Path, hf: Path, layout: Layout, answer: Path) -> None:
    """Assert that ``out`` is ``hf``, rounded as the layout says, and answers as ``GPTModel`` does."""
    assert_equal(loaded(out), {name: t.to(layout.dtype) for name, t in loaded(hf).items()})
    if layout.dtype == torch.float32:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
        asked = torch.load(hf.parent / "logits.pt")["input_ids"]
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=asked).logits, torch.load(answer), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "key"), _LEGACY)
def test_fresh_ranks_merge_to_the_model(
    family: Callable[[str], Path], name: str, key: str, tmp_path: Path
) -> None:
    case, layout = family(name), FAMILIES[name].layouts[key]
    flags = ["--config", case / "hf", "--quiet", *_sizes(layout)]
    _run(_COMMAND, "megatron-merge", case / key, tmp_path / "out", *flags)
    _assert_same_model(tmp_path / "out", case / "hf", layout, case / f"{key}.logits.pt")


@pytest.mark.parametrize(("name", "key"), _LEGACY)
def test_split_ranks_load_in_core_and_answer_alike(
    family: Callable[[str], Path], name: str, key: str, tmp_path: Path
) -> None:
    case, layout = family(name), FAMILIES[name].layouts[key]
    flags = [*_sizes(layout), "--dialect=core-local", f"--dtype={_NAMES[layout.dtype]}", "--quiet"]
    if layout.layers:
        flags.append(f"--layers-per-stage={','.join(map(str, layout.layers))}")
    if "num_moe_experts" in FAMILIES[name].core:
        flags.append("--experts=sequential")
    _run(_COMMAND, "megatron-split", case / "hf", tmp_path / "run", *flags)
    _assert_loads(case, name, key, tmp_path / "run", tmp_path / "answer.pt")


@pytest.mark.parametrize(("name", "key"), _DIST)
def test_fresh_torch_dist_converts_to_the_model(
    family: Callable[[str], Path], name: str, key: str, tmp_path: Path
) -> None:
    case, layout = family(name), FAMILIES[name].layouts[key]
    flags = ["--to", "hf", "--config", case / "hf", "--quiet"]
    _run(_COMMAND, "convert", case / key, tmp_path / "out", *flags)
    _assert_same_model(tmp_path / "out", case / "hf", layout, case / f"{key}.logits.pt")


@pytest.mark.parametrize(("name", "key"), _DIST)
def test_written_torch_dist_loads_in_core_and_answers_alike(
    family: Callable[[str], Path], name: str, key: str, tmp_path: Path
) -> None:
    case, layout = family(name), FAMILIES[name].layouts[key]
    flags = [f"--tp={layout.tp}", "--dialect=core-local", f"--dtype={_NAMES[layout.dtype]}", "--quiet"]
    _run(_COMMAND, "convert", case / "hf", tmp_path / "run", "--to", "torch_dist", *flags)
    _assert_loads(case, name, key, tmp_path / "run", tmp_path / "answer.pt")


def _assert_loads(case: Path, name: str, key: str, run: Path, answer: Path) -> None:
    """Assert that every rank takes ``run``, no name missing or over, and that they hold the model."""
    _run(sys.executable, _RECIPE, "read", f"{name}/{key}", case / "hf", run, answer)
    torch.testing.assert_close(torch.load(answer), torch.load(case / f"{key}.logits.pt"), rtol=0, atol=1e-5)
