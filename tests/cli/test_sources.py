"""SRC may be the run, the tag, a file inside, or a Trainer's output folder; what was found is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from running import CASES, DEMO, assert_equal, case_run, contents, fails, loaded, succeeds

STAGE_2 = "llama_z2_bf16_ws2_clientstate"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return case_run(STAGE_2, tmp_path / "run")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "latest",
        "global_step2",
        "global_step2/mp_rank_00_model_states.pt",
        "global_step2/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    ],
)
def test_any_place_inside_a_run(run: Path, out: Path, inside: str) -> None:
    succeeds("deepspeed-to-hf", run / inside, out)
    assert_equal(loaded(out), load_file(CASES / STAGE_2 / "gold_fp32.safetensors"))
    assert (out / "config.json").exists()


def test_a_relative_path(run: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "global_step2")
    succeeds("deepspeed-to-hf", ".", out, "--no-assets")
    monkeypatch.chdir(run)
    succeeds("deepspeed-to-hf", "global_step2", out.with_name("out2"), "--no-assets")
    assert contents(out) == contents(out.with_name("out2"))


def test_tag(run: Path, out: Path) -> None:
    shutil.copytree(run / "global_step2", run / "best")
    (run / "latest").write_text("global_step9")
    succeeds("deepspeed-to-hf", run, out, "--tag", "best")
    assert_equal(loaded(out), load_file(CASES / STAGE_2 / "gold_fp32.safetensors"))
    fails(2, "deepspeed-to-hf", run, out.with_name("out2"), "--tag", "worst", naming=("worst", "best"))


def test_a_newline_after_the_tag(run: Path, out: Path) -> None:
    (run / "latest").write_text("global_step2\r\n")
    succeeds("deepspeed-to-hf", run, out)


def test_a_trainers_output_folder_gives_its_newest_checkpoint(tmp_path: Path, out: Path) -> None:
    """By number: checkpoint-10 is newer than checkpoint-9."""
    trainer = tmp_path / "trainer"
    case_run(STAGE_2, trainer / "checkpoint-9")
    shutil.copytree(DEMO, trainer / "checkpoint-10")
    (trainer / "checkpoint-11").mkdir()
    (trainer / "runs").mkdir()
    result = succeeds("deepspeed-to-hf", trainer, out)
    assert "checkpoint-10" in result.err
    succeeds("deepspeed-to-hf", DEMO, tmp_path / "demo")
    assert contents(out) == contents(tmp_path / "demo")


def test_what_save_16bit_model_wrote_converts_as_well(tmp_path: Path) -> None:
    case = CASES / "qwen2tied_z3_bf16_ws2_save16"
    for i, source in enumerate((case / "save_16bit", case / "save_16bit/pytorch_model.bin")):
        succeeds("deepspeed-to-hf", source, tmp_path / f"out{i}", "--config", case)
        assert_equal(loaded(tmp_path / f"out{i}"), load_file(case / "gold_module.safetensors"))


def test_convert_takes_what_it_wrote(tmp_path: Path, out: Path) -> None:
    for i, flags in enumerate(
        [
            (),
            ("--format", "bin"),
            ("--max-shard-size", "30KB"),
            ("--format", "bin", "--max-shard-size", "30KB"),
        ]
    ):
        succeeds("deepspeed-to-hf", DEMO, tmp_path / f"model{i}", *flags)
        succeeds("convert", tmp_path / f"model{i}", tmp_path / f"again{i}", "--to", "hf")
    first = contents(tmp_path / "model0")
    assert all(contents(tmp_path / f"again{i}") == first for i in range(4))
