"""A checkpoint made to do harm is refused, and nothing in it ever runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from running import case_run, ckptconv, fails, final_names

STAGE_2 = "llama_z2_bf16_ws2_clientstate"
MODEL = "global_step2/mp_rank_00_model_states.pt"
OPTIMIZER = "global_step2/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"


class Harm:
    """Unpickle by running a shell command that leaves a file behind."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.sentinel}'",)


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """The file that appears if a pickle runs; that it would is proved first."""
    path = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Harm(path)))
    assert path.exists(), "the attack does not work, so that it fails proves nothing"
    path.unlink()
    return path


def _refused(sentinel: Path, source: Path, file: str, *flags: str) -> None:
    for command in ("convert", "inspect"):
        out = source.parent / "out"
        arguments = [command, source, *([out, "--to", "hf", *flags] if command == "convert" else [])]
        result = ckptconv(*arguments)
        assert not sentinel.exists(), "the pickle ran"
        assert final_names(out) == []
        assert result.code in (1, 4), f"exit code {result.code}\n{result.out}{result.err}"
        assert file in result.err and "do:" in result.err, result.err
        assert "internal error" not in result.err


@pytest.mark.parametrize("whole", [True, False], ids=["alone", "beside the weights"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_plain_file_that_calls_os_system(tmp_path: Path, sentinel: Path, whole: bool, zipped: bool) -> None:
    harm = Harm(sentinel)
    path = tmp_path / "model.pt"
    content = harm if whole else {"model": {"w": torch.ones(3)}, "more": harm}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    _refused(sentinel, path, path.name, "--no-assets")


def test_a_hugging_face_folder_whose_bin_calls_os_system(tmp_path: Path, sentinel: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    torch.save({"w": torch.ones(3), "more": Harm(sentinel)}, model / "pytorch_model.bin")
    _refused(sentinel, model, "pytorch_model.bin", "--no-assets")


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER], ids=["model states", "optimizer states"])
def test_a_deepspeed_run_with_a_file_that_calls_os_system(tmp_path: Path, sentinel: Path, file: str) -> None:
    run = case_run(STAGE_2, tmp_path / "run")
    torch.save({"module": Harm(sentinel), "optimizer_state_dict": Harm(sentinel)}, run / file)
    _refused(sentinel, run, Path(file).name)


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER], ids=["model states", "optimizer states"])
def test_a_call_hidden_in_a_file_that_is_right_otherwise(tmp_path: Path, sentinel: Path, file: str) -> None:
    run = case_run(STAGE_2, tmp_path / "run")
    _plant(run / file, sentinel)
    _refused(sentinel, run, Path(file).name)


def _plant(path: Path, sentinel: Path) -> None:
    """Make the pickle inside a torch file end in a call of ``os.system``, its own value kept."""
    import zipfile

    old = path.with_suffix(".old")
    shutil.move(path, old)
    attack = f"cposix\nsystem\n(Vtouch '{sentinel}'\ntR0".encode()  # call it, throw the result away
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("/data.pkl"):
                assert data.endswith(b".")
                data = data[:-1] + attack + b"."
            target.writestr(info.filename, data)
    old.unlink()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cposix\nsystem\n(Vtouch '%s'\ntR.",
        b"(iposix\nsystem\nVtouch '%s'\n.",
        b"(cposix\nsystem\nVtouch '%s'\no.",
        b"cbuiltins\neval\n(V__import__('os').system(\"touch '%s'\")\ntR.",
        b"c__builtin__\nexec\n(Vimport os; os.system(\"touch '%s'\")\ntR.",
        b"csubprocess\ncheck_call\n((lVtouch\naV%s\natR.",
        b"\x80\x04cos\nsystem\n\x94(Vtouch '%s'\ntR.",
    ],
    ids=["reduce", "inst", "obj", "eval", "exec", "subprocess", "protocol 4"],
)
def test_every_way_to_call_is_refused(tmp_path: Path, sentinel: Path, pickled: bytes) -> None:
    """A bare pickle is no torch file either; what counts is that nothing runs."""
    path = tmp_path / "model.bin"
    path.write_bytes(pickled.replace(b"%s", str(sentinel).encode()))
    _refused(sentinel, path, path.name, "--no-assets")


def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"secret": torch.ones(2)}, tmp_path / "secret.safetensors")
    model = tmp_path / "model"
    model.mkdir()
    index = {"metadata": {}, "weight_map": {"secret": "../secret.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    out = tmp_path / "out"
    result = ckptconv("convert", model, out, "--to", "hf", "--no-assets")
    assert result.code in (1, 4) and "../secret.safetensors" in result.err
    assert final_names(out) == []


@pytest.mark.parametrize("content", ["../../etc", "/etc", "..", ".", ""], ids=repr)
def test_latest_cannot_reach_outside_the_run(tmp_path: Path, content: str) -> None:
    run = case_run(STAGE_2, tmp_path / "run")
    (run / "latest").write_text(content)
    fails(1, "deepspeed-to-hf", run, tmp_path / "out", naming=("latest", "--tag"), out=tmp_path / "out")


def test_a_tag_cannot_reach_outside_the_run(tmp_path: Path) -> None:
    run = case_run(STAGE_2, tmp_path / "run")
    shutil.copytree(run / "global_step2", tmp_path / "other")
    fails(
        2,
        "deepspeed-to-hf",
        run,
        tmp_path / "out",
        "--tag",
        "../other",
        naming=("../other",),
        out=tmp_path / "out",
    )
