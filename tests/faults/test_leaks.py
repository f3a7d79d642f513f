"""A checkpoint does not get at what its maker could not read: links, FIFOs, devices, paths in arguments."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckptconv.errors import keep_secret
from running import DEMO, ckptconv, contents, fails, succeeds

SECRET = "hf_SECRETSECRETSECRET"
ASSETS = (
    "chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    "merges.txt", "generation_config.json", "additional_chat_templates/tool.jinja",
    "preprocessor_config.json",
)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model, converted from the demo run."""
    path = tmp_path / "model"
    succeeds("deepspeed-to-hf", DEMO, path, "-q")
    return path


def _nothing_leaks(tmp_path: Path, *words: object) -> str:
    out = tmp_path / "out"
    result = ckptconv(*words)
    found = b"".join(contents(out).values()) if out.exists() else b""
    assert SECRET.encode() not in found and SECRET not in result.out + result.err
    assert "internal error" not in result.err
    assert result.code in (0, 1, 4)
    if result.code:
        assert "do:" in result.err
    return result.err


@pytest.mark.parametrize("name", ASSETS)
@pytest.mark.parametrize("how", ["file", "environment"])
def test_links_that_lead_out_are_not_copied(model: Path, tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / "token").write_text(SECRET)
    target = "/proc/self/environ" if how == "environment" else str(tmp_path / "token")
    os.environ["HF_TEST_TOKEN"] = SECRET
    link = model / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    try:
        said = _nothing_leaks(tmp_path, "convert", model, tmp_path / "out", "--to", "hf")
        _nothing_leaks(
            tmp_path, "convert", model, tmp_path / "out", "--to", "hf", "--dtype", "bfloat16", "--verify"
        )
    finally:
        del os.environ["HF_TEST_TOKEN"]
    assert Path(name).name in said


def test_code_and_config_behind_links_are_not_copied(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"token = '{SECRET}'")
    (model / "modeling.py").symlink_to("../mine.py")
    _nothing_leaks(tmp_path, "convert", model, tmp_path / "out", "--to", "hf", "--copy-code")
    (model / "modeling.py").unlink()
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "note": SECRET}))
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("../config.json")
    _nothing_leaks(tmp_path, "convert", model, tmp_path / "out", "--to", "hf")


def test_links_inside_the_folder_are_followed(model: Path, tmp_path: Path) -> None:
    before = (model / "tokenizer.json").read_bytes()
    (model / "real").mkdir()
    shutil.move(model / "tokenizer.json", model / "real" / "t.json")
    (model / "tokenizer.json").symlink_to("real/t.json")
    succeeds("convert", model, tmp_path / "out", "--to", "hf", "-q")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before


def test_weights_behind_links_are_said(model: Path, tmp_path: Path) -> None:
    shutil.move(model / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (model / "model.safetensors").symlink_to("../elsewhere.safetensors")
    said = succeeds("convert", model, tmp_path / "out", "--to", "hf").err
    assert "elsewhere.safetensors" in said and "outside the checkpoint" in said


FIFOS = {
    "a rank": "global_step2/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "the pointer": "latest",
    "the config": "config.json",
    "the tokenizer": "tokenizer.json",
    "the journal": ".ckptconv-journal",
}


@pytest.mark.parametrize("name", FIFOS)
@pytest.mark.parametrize("device", [False, True], ids=["FIFO", "device"])
def test_nothing_waits_for_a_fifo_or_reads_a_device(tmp_path: Path, name: str, device: bool) -> None:
    run = shutil.copytree(DEMO, tmp_path / "run")
    there = [p for p in run.rglob("*") if p.name == Path(FIFOS[name]).name]
    path = there[0] if there else run / FIFOS[name]
    if name == "a rank":
        path = sorted(run.glob("global_step*/*optim_states.pt"))[-1]
    path.unlink(missing_ok=True)
    if device:
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    for words in (("inspect", run), ("deepspeed-to-hf", run, tmp_path / "out"), ("diff", run, run)):
        result = ckptconv(*words)
        assert result.code in (0, 1, 2, 3, 4) and "internal error" not in result.err


NAMES = ("model.pt", "model.safetensors", "pytorch_model.bin", "model.ckpt", "metadata.json", ".metadata")


def test_a_fifo_in_the_place_of_any_model_file(tmp_path: Path) -> None:
    for name in NAMES:
        folder = tmp_path / name.strip(".").replace(".", "_")
        folder.mkdir()
        os.mkfifo(folder / name)
        for path in (folder, folder / name):
            fails(1, "inspect", path)


@pytest.mark.parametrize(
    "where", ["https://me:{}@127.0.0.1:9/run", "s3://AKIA:{}@bucket/run", "ftp://u:{}@h/x"]
)
def test_passwords_in_urls_are_not_printed(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptconv.errors._secrets", set())
    monkeypatch.setattr("ckptconv.places.remote._TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for words in (
        ("inspect", where.format(SECRET)),
        ("convert", DEMO, where.format(SECRET), "--to", "hf", "--json"),
    ):
        result = ckptconv(*words)
        assert result.code in (1, 2) and SECRET not in result.out + result.err, result.err
    keep_secret(SECRET)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    name = "a\ud800b"
    torch.save({name: torch.ones(2)}, tmp_path / "model.pt")
    header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    for path in (tmp_path / "model.pt", tmp_path / "a.safetensors"):
        for words in (("inspect", path), ("convert", path, tmp_path / "out", "--to", "hf", "--no-assets"),
                      ("diff", path, path), ("explain", path, "*"), ("verify-roundtrip", path)):  # fmt: skip
            fails(1, *words, naming=(r"a\ud800b",))
    save_file({"a": torch.ones(2)}, tmp_path / "b.safetensors")
    result = ckptconv("explain", tmp_path / "b.safetensors", name)
    assert result.code in (1, 2) and "internal error" not in result.err


def test_a_config_that_holds_half_a_character(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "note": "\ud800\u4e2d"}))
    succeeds("convert", model, tmp_path / "out", "--to", "hf", "--dtype", "bfloat16", "--verify")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["note"] == "\ud800\u4e2d"
