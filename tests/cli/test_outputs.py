"""What is written where: kept tensors alone, folders not files, and a finished run that is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptconv as api
from ckptconv.engine import finished
from ckptconv.engine.local import run_locally
from ckptconv.errors import UsageError
from ckptconv.plans.plan import Plan
from running import DEMO, ckptconv, contents, fails, loaded, succeeds

NET = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(3), "b.weight": torch.ones(3, 3)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    save_file(NET, tmp_path / "source" / "model.safetensors")
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


FLAGS = ("--to", "hf", "--no-assets")


def test_only_what_is_kept_is_written(source: Path, out: Path) -> None:
    flags = (*FLAGS, "--keep", "a.*", "--keep", "*.weight", "--drop", "b.*")
    plan = succeeds("convert", source, out, *flags, "--dry-run").out
    assert "b.weight" in plan and "--drop b.*" in plan
    succeeds("convert", source, out, *flags)
    assert sorted(loaded(out)) == ["a.bias", "a.weight"]
    plan = succeeds("convert", source, out, *FLAGS, "--keep", "a.*", "--dry-run").out
    assert "not of --keep a.*" in plan and "b.weight" in plan
    succeeds("verify-roundtrip", source, out, "--keep", "a.*")
    fails(2, "convert", source, out.with_name("o2"), *FLAGS, "--keep", "c.*", naming=("c.*",))


def test_a_kept_part_of_a_known_model(out: Path) -> None:
    succeeds("deepspeed-to-hf", DEMO, out, "--keep", "*.self_attn.*", "--no-assets")
    assert set(loaded(out)) == {n for n in api.open(DEMO) if ".self_attn." in n}


def test_some_layers_are_kept_as_tensors_alone(tmp_path: Path) -> None:
    succeeds("deepspeed-to-hf", DEMO, tmp_path / "part", "--keep", "*.layers.0.*", "--no-assets", "--verify")
    assert all(".layers.0." in name for name in loaded(tmp_path / "part"))
    fails(4, "deepspeed-to-hf", DEMO, tmp_path / "no", "--keep", "*.layers.0.*", naming=("layers",))


@pytest.mark.parametrize("name", ["model.safetensors", "x.bin", "a.ckpt"])
def test_an_output_that_is_called_as_a_file_is_asked_about(source: Path, tmp_path: Path, name: str) -> None:
    fails(2, "convert", source, tmp_path / "o" / name, *FLAGS, naming=(name, str(tmp_path / "o")))
    with pytest.raises(UsageError, match="is the name of a file"):
        api.convert(source, tmp_path / "o" / name, assets=False)
    assert not (tmp_path / "o").exists()
    (tmp_path / "o" / name).mkdir(parents=True)
    succeeds("convert", source, tmp_path / "o" / name, *FLAGS)


def test_the_home_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rules").write_text("a.bias = c\n")
    succeeds("convert", "~/source", "~/out", *FLAGS, "--rename=~/rules")
    assert "c" in load_file(tmp_path / "out" / "model.safetensors")
    succeeds("inspect", "~/source", "--report=~/page.html")
    assert (tmp_path / "page.html").is_file() and not Path("~").exists()


@pytest.mark.parametrize("flags", [(), ("--format", "bin"), ("--max-shard-size", "20B")], ids=repr)
def test_a_finished_run_is_resumed_by_doing_nothing(source: Path, out: Path, flags: tuple[str, ...]) -> None:
    first = json.loads(succeeds("convert", source, out, *FLAGS, *flags, "--json").out)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    again = succeeds("convert", source, out, *FLAGS, *flags, "--resume")
    assert "done" in again.out and "all of it was there" in again.out
    report = json.loads(succeeds("convert", source, out, *FLAGS, *flags, "--resume", "--json").out)
    assert report["files"] == first["files"] and report["resumed_bytes"] == report["bytes"]
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_files_are_reported_in_the_order_of_the_plan_whichever_ends_first(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*FLAGS, "--max-shard-size", "20B", "--workers", "1")
    first = json.loads(succeeds("convert", source, out, *flags, "--json").out)
    assert len(first["files"]) > 1

    def backwards(plan: Plan, numbers: Iterable[int], *rest: Any) -> None:
        run_locally(plan, [*numbers][::-1], *rest)

    monkeypatch.setattr(finished, "run_locally", backwards)
    again = json.loads(succeeds("convert", source, out, *flags, "--resume", "--json").out)
    assert again["files"] == first["files"]


def test_a_finished_run_with_assets_and_a_certificate(out: Path) -> None:
    succeeds("deepspeed-to-hf", DEMO, out, "--verify")
    before = contents(out)
    succeeds("deepspeed-to-hf", DEMO, out, "--resume", "--verify")
    after = contents(out)
    assert {n: b for n, b in after.items() if "verify" not in n} == {
        n: b for n, b in before.items() if "verify" not in n
    }


def test_resuming_the_finished_run_of_another_plan_says_so(source: Path, out: Path) -> None:
    succeeds("convert", source, out, *FLAGS)
    flags = ("convert", source, out, *FLAGS, "--resume")
    fails(1, *flags, "--dtype", "bf16", naming=("other flags", "--overwrite"))
    fails(1, *flags, "--format", "bin", naming=("not empty",))
    save_file({**NET, "a.bias": torch.zeros(3)}, source / "model.safetensors")
    fails(1, *flags, naming=("other flags, or of another source", "holds other values"))


def test_an_interrupted_run_is_called_so(source: Path, out: Path) -> None:
    out.mkdir()
    (out / ".ckptconv-journal").write_text('{"plan": "x", "overwrite": false}\n')
    (out / "model.safetensors.part").write_bytes(b"x")
    fails(1, "inspect", out, naming=("interrupted", "--resume"))
    result = succeeds("convert", source, out, *FLAGS, "--resume")
    assert "other flags or another source" in result.err


def test_no_speed_for_what_took_no_time_and_fields_are_fields(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptconv.numbers.rates._NO_TIME", 60)  # the machine may be busy
    result = ckptconv("deepspeed-to-hf", DEMO, out)
    assert "done" in result.out and "/s" not in result.out


def test_what_is_to_be_written_has_to_be_said(source: Path, out: Path) -> None:
    fails(2, "convert", source, out, naming=("--to hf", "megatron", "torch_dist", "dcp", "mindformers"))


def test_a_warning_says_who_left_tensors_out(out: Path) -> None:
    said = succeeds("deepspeed-to-hf", DEMO, out, "--drop", "*norm*", "--no-assets").err
    assert "5 parameters of llama are left out by --drop or --keep, so the model is incomplete" in said
