"""Every DeepSpeed checkpoint in the repository converts to its true weights, bit for bit, in every form.

``CKPTCONV_CASES=DIR[:DIR]`` checks other folders of cases instead.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ckptconv.cli.app import build
from golden import VARIANTS, Case, Variant, check, find_cases

_COMMITTED = Path(__file__).parent.parent / "fixtures" / "deepspeed"
_ROOTS = [Path(p) for p in os.environ.get("CKPTCONV_CASES", str(_COMMITTED)).split(":")]
_CASES = find_cases(*_ROOTS)
_LOADABLE = [c for c in _CASES if "--config" in c.config_flags and not c.facts.get("buffers")]


def _name(value: object) -> str | None:
    if isinstance(value, Case):
        return "/".join(value.path.parts[-2:]) if value.path.parent.name.startswith("v") else value.path.name
    return value.name if isinstance(value, Variant) else None


def _convert(source: Path, out: Path, *flags: str) -> None:
    result = CliRunner().invoke(
        build("deepspeed-to-hf"), ["deepspeed-to-hf", str(source), str(out), "--quiet", *flags]
    )
    if result.exit_code != 0:
        raise AssertionError(f"exit code {result.exit_code}\n{result.output}") from result.exception


def test_there_are_cases() -> None:
    assert len(_CASES) >= 20 or "CKPTCONV_CASES" in os.environ


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
@pytest.mark.parametrize("case", _CASES, ids=_name)
def test_weights_are_the_true_ones(case: Case, variant: Variant, tmp_path: Path) -> None:
    for source in case.sources:
        out = tmp_path / source.name
        _convert(source, out, "--no-assets", *variant.flags)
        check(case, variant, out)


@pytest.mark.parametrize("case", [c for c in _CASES if (c.path / "save_16bit").is_dir()], ids=_name)
def test_gathered_16bit_weights_are_the_model(case: Case, tmp_path: Path) -> None:
    _convert(case.path / "save_16bit" / "pytorch_model.bin", tmp_path / "out", "--no-assets")
    check(case, Variant("16bit", weights="module"), tmp_path / "out")


@pytest.mark.parametrize("case", _LOADABLE, ids=_name)
def test_model_loads_without_a_name_missing_or_left_over(case: Case, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _convert(case.path / "ckpt", tmp_path / "out", *case.config_flags)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    loaded, expected = model.state_dict(), case.answers("fp32")
    for alias, kept in case.facts["tied"].items():
        assert loaded[alias].data_ptr() == loaded[kept].data_ptr()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
