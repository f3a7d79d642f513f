"""Real saves of older DeepSpeed releases give their true masters, bit for bit, or are refused by name."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ckptconv.cli.app import build
from ckptconv.errors import PlanError
from golden import VARIANTS, Case, Variant, check

READ = (
    "v0.3.16/llama_z1_fp16_ws2_groups",
    "v0.3.16/llama_z2_fp16_ws2_frozen_buffers",
    "v0.3.16/llama_z2_fp16_ws3_groups",
    "v0.3.16/pipe_z1_fp16_ws2_pp2_tied",
    "v0.12.6/moe_z2_bf16_ws2_ep2",
)
MASTERS, MODEL = VARIANTS[0], VARIANTS[1]


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    folder = tmp_path_factory.mktemp("saves")
    with tarfile.open(fixtures / "deepspeed_old.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


def convert(source: Path, out: Path, *flags: str) -> BaseException | None:
    result = CliRunner().invoke(
        build("deepspeed-to-hf"), ["deepspeed-to-hf", str(source), str(out), "--quiet", "--no-assets", *flags]
    )
    return result.exception


@pytest.mark.parametrize("variant", [MASTERS, MODEL], ids=lambda v: v.name)
@pytest.mark.parametrize("name", READ)
def test_the_weights_are_the_true_ones(saves: Path, name: str, variant: Variant, tmp_path: Path) -> None:
    case = Case.load(saves / name)
    assert convert(case.path / "ckpt", tmp_path / "out", *variant.flags) is None
    check(case, variant, tmp_path / "out")


def test_stage_3_in_an_order_that_nothing_proves(saves: Path, tmp_path: Path) -> None:
    source = saves / "v0.3.16" / "llama_z3_fp16_ws3_groups" / "ckpt"
    for flags in ((), ("--weights", "model")):
        found = convert(source, tmp_path / "out", *flags)
        assert isinstance(found, PlanError) and "2 optimizer groups" in found.message
    assert not (tmp_path / "out").exists()


def test_masters_that_were_not_saved(saves: Path, tmp_path: Path) -> None:
    case = Case.load(saves / "v0.17.6" / "llama_z0_bf16_ws2")
    found = convert(case.path / "ckpt", tmp_path / "out")
    assert isinstance(found, PlanError) and found.hint is not None
    assert "saved no optimizer states" in found.message and "--weights model" in found.hint
    assert convert(case.path / "ckpt", tmp_path / "out", *MODEL.flags) is None
    check(case, MODEL, tmp_path / "out")
