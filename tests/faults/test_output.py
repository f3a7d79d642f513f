"""The output folder: never mixed, never half a model under final names, never somebody else's files."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ckptconv as api
from ckptconv.engine.events import Event, FileDone, Progress
from ckptconv.engine.journal import JOURNAL, Journal
from ckptconv.errors import InputChangedError, OutputError
from running import DEMO, case_run, contents, fails, final_names, loaded, mounted, start, succeeds


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run in eight or so shards writes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    succeeds("deepspeed-to-hf", DEMO, folder, "--max-shard-size", "40KB", "--quiet")
    return contents(folder)


SHARDS = ("--max-shard-size", "40KB", "--workers", "1", "--quiet")


def test_a_folder_with_files_is_left_alone(out: Path) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    fails(1, "deepspeed-to-hf", DEMO, out, naming=("notes.txt", "--overwrite"), out=out)
    assert contents(out) == {"notes.txt": b"mine"}


def test_the_output_is_a_file(out: Path) -> None:
    out.write_text("mine")
    fails(1, "deepspeed-to-hf", DEMO, out, naming=(str(out), "file"))
    assert out.read_text() == "mine"


def test_the_output_lies_below_a_file(out: Path) -> None:
    out.write_text("mine")
    fails(1, "deepspeed-to-hf", DEMO, out / "model", naming=(str(out),))


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)], ids=repr)
def test_the_output_is_the_run(tmp_path: Path, flags: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    shutil.copytree(DEMO, run)
    before = contents(run)
    fails(1, "deepspeed-to-hf", run, run, *flags, naming=(str(run), "another folder"))
    assert contents(run) == before


def test_the_output_is_the_model_that_is_read(tmp_path: Path) -> None:
    """Other names for the new files would not save the old ones: ``--overwrite`` removes them."""
    model = tmp_path / "model"
    succeeds("deepspeed-to-hf", DEMO, model, "--format", "bin", "--quiet")
    (tmp_path / "link").symlink_to(model)
    before = contents(model)
    for target in (model, tmp_path / "link"):
        fails(1, "convert", model, target, "--to", "hf", "--overwrite", naming=("another folder",))
    assert contents(model) == before


def test_overwrite_leaves_nothing_of_the_old_model(out: Path, whole: dict[str, bytes]) -> None:
    succeeds("deepspeed-to-hf", DEMO, out, "--max-shard-size", "10KB", "--quiet")
    (out / "README.md").write_text("mine")
    succeeds("deepspeed-to-hf", DEMO, out, "--overwrite", *SHARDS)
    assert contents(out) == {**whole, "README.md": b"mine"}
    succeeds("deepspeed-to-hf", DEMO, out, "--overwrite", "--format", "bin", "--quiet")
    assert final_names(out) == ["config.json", "pytorch_model.bin"]


def test_overwrite_leaves_what_is_no_model_of_ours(out: Path) -> None:
    """A Trainer's folder holds other ``.bin`` files as well; an adapter would be put on top of the model."""
    out.mkdir()
    others = ("training_args.bin", "optimizer.bin", "notes.txt")
    for name in (
        *others,
        "adapter_model.safetensors",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
    ):
        (out / name).write_bytes(b"old")
    succeeds("deepspeed-to-hf", DEMO, out, "--overwrite")
    assert all((out / name).read_bytes() == b"old" for name in others)
    assert not (out / "model-00001-of-00002.safetensors").exists()
    assert not (out / "pytorch_model.bin").exists()
    assert not (out / "adapter_model.safetensors").exists()


def test_a_failed_overwrite_keeps_the_old_model(tmp_path: Path, out: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(DEMO, run)
    succeeds("deepspeed-to-hf", run, out, "--quiet")
    before = contents(out)

    def spoil(event: Event) -> None:
        if isinstance(event, Progress):
            os.utime(run / "global_step2" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", (1, 1))

    with pytest.raises(InputChangedError):
        api.convert(run, out, overwrite=True, listen=spoil)
    assert {n: b for n, b in contents(out).items() if not n.endswith(".part") and n != JOURNAL} == before


def test_resume_and_overwrite_exclude_each_other(out: Path) -> None:
    message = fails(2, "deepspeed-to-hf", DEMO, out, "--resume", "--overwrite", out=out)
    assert "--resume" in message and "--overwrite" in message


def _heed_modes() -> None:
    """Take from root the right to write anywhere; nobody else has it to lose."""
    if os.geteuid() == 0:
        prctl, drop, dac_override = ctypes.CDLL(None).prctl, 24, 1
        assert prctl(drop, dac_override, 0, 0, 0) == 0


def test_a_folder_that_may_not_be_written(out: Path) -> None:
    out.mkdir(mode=0o555)
    for folder in (out, out / "model"):
        process = start("deepspeed-to-hf", DEMO, folder, preexec_fn=_heed_modes)
        _, err = process.communicate(timeout=60)
        message = " ".join(err.decode().split())
        assert process.returncode == 1 and str(folder) in message and "you may write to" in message
    assert list(out.iterdir()) == []


def test_two_runs_cannot_share_a_folder(out: Path) -> None:
    out.mkdir()
    with Journal(out, "the other run's plan", resume=False):
        (out / "model.safetensors.part").write_bytes(b"its work")
        for flags in ((), ("--resume",), ("--overwrite",)):
            fails(1, "deepspeed-to-hf", DEMO, out, *flags, naming=("another run", str(out)), out=out)
    assert (out / "model.safetensors.part").read_bytes() == b"its work"


def test_an_ended_run_leaves_neither_lock_nor_journal(out: Path) -> None:
    succeeds("deepspeed-to-hf", DEMO, out, "--quiet")
    assert not [p for p in out.iterdir() if p.name == JOURNAL or p.suffix == ".part"]


class TestFullDisk:
    """A full disk ends the run by name; space made, ``--resume`` goes on."""

    LIMIT = 30_000  # some shards are smaller, some larger

    def _run(self, out: Path, *flags: str, limit: int | None = None) -> tuple[int, str]:
        def shrink() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = start("deepspeed-to-hf", DEMO, out, *SHARDS, *flags, preexec_fn=shrink)
        _, err = process.communicate(timeout=60)
        return process.returncode, err.decode()

    def test_a_limit_on_file_sizes(self, out: Path, whole: dict[str, bytes]) -> None:
        assert min(map(len, whole.values())) < self.LIMIT < max(map(len, whole.values()))
        code, err = self._run(out, limit=self.LIMIT)
        assert code == 1 and "File too large" in err and "--resume" in err and str(out) in err, err
        assert final_names(out) == []
        code, err = self._run(out, "--resume")
        assert code == 0, err
        assert contents(out) == whole

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        with mounted(tmp_path / "disk", "400k") as disk:
            yield disk

    def test_too_little_space_is_seen_before_anything_is_written(self, small_disk: Path) -> None:
        (small_disk / "ballast").write_bytes(bytes(300_000))
        out = small_disk / "out"
        fails(1, "deepspeed-to-hf", DEMO, out, naming=("bytes", "free"), out=out)
        assert contents(out) == {}
        (small_disk / "ballast").unlink()
        succeeds("deepspeed-to-hf", DEMO, out, "--no-assets", "--quiet")

    def test_a_disk_that_fills_up_meanwhile(self, small_disk: Path, whole: dict[str, bytes]) -> None:
        out, ballast = small_disk / "out", small_disk / "ballast"

        def fill(event: Event) -> None:
            if isinstance(event, FileDone) and not ballast.exists():
                with open(ballast, "wb", buffering=0) as file:
                    try:
                        while file.write(bytes(4096)):
                            pass
                    except OSError:
                        pass

        with pytest.raises(OutputError, match="No space left") as caught:
            api.convert(DEMO, out, max_shard_size="40KB", workers=1, assets=False, listen=fill)
        assert caught.value.exit_code == 1 and "resume=True" in str(caught.value)
        assert ".part" in str(caught.value.where)
        assert final_names(out) == []
        ballast.unlink()
        report = api.convert(DEMO, out, max_shard_size="40KB", workers=1, assets=False, resume=True)
        assert 0 < report.resumed < report.bytes_out
        assert contents(out) == {n: b for n, b in whole.items() if "model" in n and n != "config.json"}


class TestInputChanges:
    """A source that changes while it is read is found out, whatever it changes into."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        run = tmp_path / "run"
        shutil.copytree(DEMO, run)
        return run

    @pytest.mark.parametrize("change", ["touched", "longer", "shorter", "removed", "replaced"])
    @pytest.mark.parametrize("rank", [0, 1])
    def test_is_refused(self, run: Path, out: Path, change: str, rank: int) -> None:
        path = run / "global_step2" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"

        def disturb(event: Event) -> None:
            if not isinstance(event, Progress):
                return
            if change == "touched":
                os.utime(path, (1, 1))
            elif change == "longer":
                with open(path, "ab") as file:
                    file.write(b"x")
            elif change == "shorter":
                os.truncate(path, 5000)
            elif change == "removed":
                path.unlink(missing_ok=True)
            else:
                shutil.copyfile(path, path.with_suffix(".new"))
                path.with_suffix(".new").replace(path)

        with pytest.raises(InputChangedError) as caught:
            api.convert(run, out, listen=disturb, max_shard_size="40KB", workers=1)
        assert caught.value.exit_code == 1
        assert caught.value.where == str(path) and caught.value.hint
        assert final_names(out) == []

    def test_what_was_written_before_is_not_resumed(self, run: Path, out: Path) -> None:
        path = run / "global_step2" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"

        def disturb(event: Event) -> None:
            if isinstance(event, FileDone):
                os.utime(path, (1, 1))

        with pytest.raises(InputChangedError):
            api.convert(run, out, listen=disturb, max_shard_size="40KB", workers=1)
        fails(1, "deepspeed-to-hf", run, out, naming=("--resume", "--overwrite"), out=out)
        report = api.convert(run, out, max_shard_size="40KB", resume=True)
        assert report.resumed == 0


def test_few_file_handles_are_enough_for_many_files(tmp_path: Path, out: Path) -> None:
    from safetensors.torch import save_file

    tensors = {f"w{i}": torch.full((3,), float(i)) for i in range(150)}
    model = tmp_path / "model"
    model.mkdir()
    for name, tensor in tensors.items():
        save_file({name: tensor}, model / f"{name}.safetensors")
    index = {"metadata": {}, "weight_map": {name: f"{name}.safetensors" for name in tensors}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    process = start("convert", model, out, "--to", "hf", "--no-assets", preexec_fn=few)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    assert all(torch.equal(t, tensors[n]) for n, t in loaded(out).items())


def test_too_few_file_handles_is_an_error_that_says_so(tmp_path: Path, out: Path) -> None:
    run = case_run("llama_z1_bf16_ws8_tinygroups", tmp_path / "run")

    def none() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))

    process = start("deepspeed-to-hf", run, out, "--no-assets", preexec_fn=none)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Too many open files" in err.decode(), err.decode()
    assert final_names(out) == []
