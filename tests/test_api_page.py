"""The page about Python runs as it stands, in both languages, and what it says of reprs and errors is so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import ckptconv
from ckptconv.engine.events import Event, Started
from running import DEMO, ROOT


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(DEMO, tmp_path / "runs" / DEMO.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["api.md", "zh/api.md"])
def test_the_code_of_the_page_runs(page: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    code = "\n".join(line[4:] if line.startswith("    ") else "" for line in lines)
    exec(compile(code, page, "exec"), {"__name__": page})
    said = capsys.readouterr().out
    assert "did you mean model.norm.weight?" in said and "tp" in said


def test_every_public_name_is_on_the_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    functions = [n for n in ckptconv.__all__ if n[0].islower()]
    assert [n for n in functions if f"| `{n}(" not in page] == []


def test_what_is_shown_is_short(here: Path) -> None:
    source = here / "runs" / DEMO.name
    run, made = ckptconv.open(source), ckptconv.plan(source)
    report = ckptconv.convert(source, here / "model")
    result = ckptconv.verify_roundtrip(source, here / "model", certify=True)
    outcomes = [report, result, ckptconv.check(here / "model"), ckptconv.diff(source, here / "model")]
    more = [
        ckptconv.inspect(source),
        ckptconv.ls(source.parent),
        run.checkpoint,
        run.relation,
        ckptconv.explain(source, "model.norm.weight"),
    ]
    for shown in (run, made, *outcomes, *more):
        assert len(repr(shown)) < 700 and "\n" not in repr(shown), shown
        if hasattr(shown, "_repr_html_"):
            assert shown._repr_html_().startswith("<table>")
    assert "21 tensors" in repr(made) and "step: 2" in repr(run) and "ok: True" in repr(result)


def test_html_is_escaped(tmp_path: Path) -> None:
    torch.save({"<b>.weight": torch.ones(2)}, tmp_path / "<script>.pt")
    assert "<script>" not in ckptconv.open(tmp_path / "<script>.pt")._repr_html_()


def test_a_model_says_its_step_layout_and_config() -> None:
    run = ckptconv.open(DEMO)
    assert run.step == 2 and run.layout["zero_stage"] == 3
    assert run.config is not None and run.config["model_type"] == "llama"


def test_a_tensor_is_read_as_numpy_or_torch() -> None:
    model = ckptconv.open(DEMO).to("hf", dtype="bf16")
    array, tensor = model.read("model.norm.weight"), model.read("model.norm.weight", framework="pt")
    assert array.dtype == ml_dtypes.bfloat16 and tensor.dtype == torch.bfloat16
    assert torch.equal(tensor.float(), torch.from_numpy(array.astype(np.float32)))
    with pytest.raises(ckptconv.CkptconvError, match="no framework 'tf'"):
        model.read("model.norm.weight", framework="tf")  # type: ignore[call-overload]


def test_a_wrong_name_names_near_ones_and_asking_costs_nothing() -> None:
    run = ckptconv.open(DEMO)
    assert "nothing" not in run and run.get("nothing") is None
    with pytest.raises(KeyError, match=re.escape("did you mean model.norm.weight")):
        run["model.norm.wieght"]


def test_errors_speak_of_keywords(tmp_path: Path) -> None:
    with pytest.raises(ckptconv.CkptconvError) as caught:
        ckptconv.convert(DEMO, tmp_path / "out", to="dcp", lora="adapter")
    assert 'lora="adapter" does not go with to="dcp"' in str(caught.value) and "--" not in str(caught.value)
    with pytest.raises(ckptconv.CkptconvError) as caught:
        ckptconv.convert(DEMO, tmp_path / "out", resume=True, overwrite=True)
    assert "resume=True and overwrite=True" in caught.value.message
    with pytest.raises(ckptconv.CkptconvError) as caught:
        ckptconv.check(tmp_path)
    assert caught.value.hint is not None and "ckptconv.verify_roundtrip" in caught.value.hint


@pytest.mark.parametrize("memory", ["8MiB", 8 << 20])
def test_sizes_are_text_or_numbers_and_a_bar_is_shown(
    tmp_path: Path, memory: str | int, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[Event] = []
    fields = {"max_memory": memory, "listen": heard.append, "progress": True}
    ckptconv.convert(DEMO, tmp_path / "a", max_shard_size=memory, **fields)
    ckptconv.average([DEMO, tmp_path / "a"], tmp_path / "b", **fields)
    assert ckptconv.verify_roundtrip(DEMO, tmp_path / "a", **fields).ok
    assert ckptconv.diff(DEMO, tmp_path / "a", **fields).ok
    assert sum(isinstance(e, Started) for e in heard) >= 4
    assert capsys.readouterr().out == ""
