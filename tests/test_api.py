"""The API: open, look, convert; the same answers as the command line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckptconv
from ckptconv.api.progress import following
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.engine.events import Event, FileDone, Progress, Started, Stored
from ckptconv.errors import FormatError, MismatchError, PlanError, UsageError
from running import CASES, DEMO, assert_equal, case_run, contents, loaded, succeeds

STAGE_2 = "llama_z2_bf16_ws2_clientstate"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return case_run(STAGE_2, tmp_path / "run")


def _bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "case", [STAGE_2, "llama_z3_fp32_ws2", "llama_tp2_z1_bf16_ws4", "gpt2tied_z2_fp16_ws3"]
)
def test_every_tensor_can_be_read(case: str) -> None:
    model = ckptconv.open(CASES / case / "ckpt")
    if (whole := CASES / case / "gold_fp32.safetensors").exists():
        for name, tensor in load_file(whole).items():
            assert model[name].shape == tuple(tensor.shape) and model[name].dtype.name == "float32"
            assert _bits(model.read(name)) == _raw(tensor)
    else:
        assert all(model.read(name).shape == info.shape for name, info in model.items())


def test_a_tensor_says_where_it_lies(run: Path) -> None:
    info = ckptconv.open(run).tensors["model.embed_tokens.weight"]
    assert info.nbytes == 4 * np.prod(info.shape)
    assert info.files and all(Path(f).parent == run / "global_step2" for f in info.files)


def test_to_is_lazy_and_reads_what_convert_writes(run: Path, tmp_path: Path) -> None:
    model = ckptconv.open(run).to("hf", dtype="bfloat16")
    ckptconv.convert(run, tmp_path / "out", to="hf", dtype="bfloat16")
    written = loaded(tmp_path / "out")
    assert list(model) == list(ckptconv.open(run)) and len(model) == len(written)
    for name, tensor in written.items():
        assert model[name].dtype.name == "bfloat16"
        assert model.read(name).dtype.name == "bfloat16"
        assert _bits(model.read(name)) == _raw(tensor)


def test_to_renames_and_drops(run: Path, tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("model.norm.weight = final")
    model = ckptconv.open(run).to(rename=tmp_path / "rules", drop=("lm_head.*",))
    assert "final" in model and "model.norm.weight" not in model and "lm_head.weight" not in model
    assert _bits(model.read("final")) == _bits(ckptconv.open(run).read("model.norm.weight"))


def test_a_name_that_is_not_there_is_a_key_error(run: Path) -> None:
    with pytest.raises(KeyError):
        ckptconv.open(run).read("no.such.tensor")


def test_reading_compares_replicas(tmp_path: Path) -> None:
    run = case_run("llama_z0_bf16_ws2", tmp_path / "run")
    module = open_torch(run / "global_step2" / "mp_rank_00_model_states.pt").root["module"]  # type: ignore[index]
    tensor = module["model.embed_tokens.weight"]
    with open(tensor.path, "r+b") as file:
        file.seek(tensor.offset + tensor.nbytes // 2)
        file.write(b"\x55\x55")
    with pytest.raises(MismatchError, match=r"model\.embed_tokens\.weight\["):
        ckptconv.open(run).read("model.embed_tokens.weight")


def test_convert_reports_what_it_wrote(run: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    report = ckptconv.convert(run, tmp_path / "out", listen=events.append)
    assert isinstance(report, ckptconv.Report)
    assert report.folder == str(tmp_path / "out")
    assert list(report.files) == ["model.safetensors"]
    assert report.bytes_out == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert report.resumed == 0 and report.overflows == 0
    assert events[0] == Started(report.bytes_out, 0) and events[-1] == Stored(report.folder)
    assert sum(e.count for e in events if isinstance(e, Progress)) == report.bytes_out
    assert [(e.name, e.digest) for e in events if isinstance(e, FileDone)] == list(report.files.items())


def test_the_command_line_writes_the_same(run: Path, tmp_path: Path) -> None:
    ckptconv.convert(run, tmp_path / "api", dtype="float16", format="bin", max_shard_size="20KB")
    flags = ("--dtype", "float16", "--format", "bin", "--max-shard-size", "20KB")
    succeeds("deepspeed-to-hf", run, tmp_path / "cli", *flags)
    assert contents(tmp_path / "api") == contents(tmp_path / "cli")


def test_round_trip_through_the_hugging_face_reader(run: Path, tmp_path: Path) -> None:
    ckptconv.convert(run, tmp_path / "one")
    ckptconv.convert(tmp_path / "one", tmp_path / "two", format="bin", max_shard_size="20KB")
    ckptconv.convert(tmp_path / "two", tmp_path / "three")
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert_equal(loaded(tmp_path / "two"), load_file(CASES / STAGE_2 / "gold_fp32.safetensors"))


class TestPlanDigest:
    """The digest names a plan: equal for equal inputs and options, another for any other."""

    def test_is_stable(self, run: Path) -> None:
        assert ckptconv.plan(run).digest() == ckptconv.plan(run).digest()

    @pytest.mark.parametrize(
        "fields",
        [
            {"dtype": "bfloat16"},
            {"format": "bin"},
            {"max_shard_size": "20KB"},
            {"weights": "model"},
            {"assets": False},
            {"drop": ("lm_head.weight",)},
        ],
        ids=lambda f: next(iter(f)),
    )
    def test_changes_with_an_option(self, run: Path, fields: dict[str, object]) -> None:
        assert ckptconv.plan(run, **fields).digest() != ckptconv.plan(run).digest()

    def test_changes_with_an_input(self, run: Path) -> None:
        before = ckptconv.plan(run).digest()
        path = next((run / "global_step2").glob("*optim_states.pt"))
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        assert ckptconv.plan(run).digest() != before

    def test_changes_with_an_asset(self, run: Path) -> None:
        before = ckptconv.plan(run).digest()
        shutil.copyfile(DEMO / "tokenizer.json", run / "tokenizer.json")
        assert ckptconv.plan(run).digest() != before


def test_options_and_fields_are_one() -> None:
    options = ckptconv.ConvertOptions(dtype="float16")
    assert ckptconv.plan(DEMO, options).digest() == ckptconv.plan(DEMO, dtype="float16").digest()


def test_errors_are_of_one_tree(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        ckptconv.open(tmp_path / "none")
    assert isinstance(caught.value, ckptconv.CkptconvError) and caught.value.exit_code == 1
    with pytest.raises(UsageError):
        ckptconv.convert(DEMO, tmp_path / "out", to="tensorflow")
    with pytest.raises(PlanError):
        ckptconv.convert(CASES / STAGE_2 / "ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_public_names_are_there() -> None:
    assert all(getattr(ckptconv, name) is not None for name in ckptconv.__all__)
    with pytest.raises(AttributeError):
        ckptconv.no_such_name  # noqa: B018


def test_a_plan_says_what_is_left_out_and_which_names_go_with_a_drop(fixtures: Path) -> None:
    run = fixtures / "deepspeed/qwen2tied_z2_bf16_ws2/ckpt"
    plan = ckptconv.plan(run, assets=False, drop=("model.embed_tokens.weight",))
    said = {(s.kind, s.what): s.why for s in plan.steps}
    assert "is dropped" in said["drop", "lm_head.weight"]
    assert any(kind == "left out" and "optimizer" in why for (kind, _), why in said.items())


def test_what_is_shown_is_short_alone_and_in_lists(run: Path) -> None:
    info = ckptconv.open(run)["model.norm.weight"]
    shown = repr(info)
    assert shown.startswith("<TensorInfo name: model.norm.weight, shape: (") and "dtype: float32" in shown
    assert len(shown) < 250 and info._repr_html_().startswith("<table>")
    found = ckptconv.explain(run, "*norm*")
    assert isinstance(found, tuple)
    assert all(len(repr(one)) < 150 for one in found) and "of: Hugging Face" in repr(found[0])
    assert "1 save, 1 complete" in repr(ckptconv.ls(run))


def test_a_notebook_without_widgets_gets_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """As Jupyter shows it: a carriage return begins the line again; nothing is left of it in the end."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("ckptconv.api.progress.find_spec", lambda name: None)
    now = [0.0]
    monkeypatch.setattr("ckptconv.api.progress.time.perf_counter", lambda: now[0])
    heard: list[Event] = []
    with following(heard.append, "writing", progress=True) as tell:
        assert tell is not None
        tell(Started(1000, 200))
        for _ in range(4):
            now[0] += 0.25
            tell(Progress(100))
    shown = capsys.readouterr().err.split("\r")
    assert shown[1].startswith("writing: 30%, 300 B of 1 KB, 400 B/s, 2 s left")
    assert len(shown) == 7 and shown[-2].strip() == "" == shown[-1] and len(shown[-2]) >= len(shown[-3])
    assert len(heard) == 5 and not recwarn.list
