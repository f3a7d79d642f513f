"""The files of a DeepSpeed folder are found and sorted by what they hold, in every release's spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.readers.deepspeed.find import find_run, looks_like_deepspeed, sort_files
from ckptconv.readers.registry import READERS
from ckptconv.readers.saves import find_save


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


MODEL = "mp_rank_00_model_states.pt"


@pytest.mark.parametrize(
    ("name", "kind", "where"),
    [
        ("mp_rank_00_model_states.pt", "model", (0, 0)),
        ("mp_rank_11_model_states.pt", "model", (11, 0)),
        ("zero_pp_rank_3_mp_rank_01_model_states.pt", "model", (1, 3)),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "optim", (0, 0)),
        ("bf16_zero_pp_rank_12_mp_rank_02_optim_states.pt", "optim", (2, 12)),
        ("fp16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "optim", (0, 1)),
        ("zero_pp_rank_1_mp_rank_00optim_states.pt", "optim", (0, 1)),
        ("layer_03-model_states.pt", "layers", (3, 0)),
        ("layer_12-model_01-model_states.pt", "layers", (12, 1)),
        ("expp_rank_1_mp_rank_00_optim_states.pt", "expert_optim", (0, 1)),
    ],
)
def test_a_file_is_known_by_its_name(tmp_path: Path, name: str, kind: str, where: tuple[int, int]) -> None:
    files = sort_files(make(tmp_path, name, "zero_to_fp32.py", "notes.txt", name + ".tmp"))
    outer, inner = where
    assert getattr(files, kind) == {outer: {inner: tmp_path / name}}
    assert list(files.all()) == [tmp_path / name]


def test_expert_files(tmp_path: Path) -> None:
    names = ("layer_1_expert_3_mp_rank_00_model_states.pt", "expert_5_mp_rank_01_model_states.pt")
    files = sort_files(make(tmp_path, *names))
    assert files.experts == {(1, 3, 0): tmp_path / names[0], (0, 5, 1): tmp_path / names[1]}
    assert not files.model and not files.layers


def test_two_files_of_one_rank_are_two_saves(tmp_path: Path) -> None:
    names = ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(FormatError, match="both rank 0") as caught:
        sort_files(make(tmp_path, *names))
    assert caught.value.where == str(tmp_path) and caught.value.hint


def test_universal(tmp_path: Path) -> None:
    make(tmp_path, MODEL, "zero/model.norm.weight/fp32.pt")
    assert sort_files(tmp_path).universal == tmp_path / "zero"


class TestFindRun:
    def test_latest(self, tmp_path: Path) -> None:
        make(tmp_path, f"step1/{MODEL}", f"step2/{MODEL}")
        (tmp_path / "latest").write_text(" step1\n")
        run = find_run(tmp_path)
        assert (run.root, run.tag, run.notes) == (tmp_path, tmp_path / "step1", ())

    def test_several_models_of_one_save_are_not_chosen_between(self, tmp_path: Path) -> None:
        """Accelerate's ``latest`` names the tag of the model it saved last."""
        make(tmp_path, f"pytorch_model/{MODEL}", f"pytorch_model_1/{MODEL}")
        (tmp_path / "latest").write_text("pytorch_model_1")
        with pytest.raises(UsageError, match="accelerate saved 2 models") as caught:
            find_run(tmp_path)
        assert caught.value.hint is not None
        assert "--tag pytorch_model or --tag pytorch_model_1" in caught.value.hint
        for tag in ("pytorch_model", "pytorch_model_1"):
            assert find_run(tmp_path / tag).tag == tmp_path / tag == find_save(tmp_path, tag, READERS).path

    def test_a_tag_of_the_newest_checkpoint_of_a_trainer(self, tmp_path: Path) -> None:
        for step in (5, 10):
            make(tmp_path / f"checkpoint-{step}", f"pytorch_model/{MODEL}", f"pytorch_model_1/{MODEL}")
            (tmp_path / f"checkpoint-{step}" / "latest").write_text("pytorch_model_1")
        with pytest.raises(UsageError, match="accelerate saved 2 models"):
            find_run(tmp_path)
        found = find_save(tmp_path, "pytorch_model", READERS).path
        assert found == tmp_path / "checkpoint-10" / "pytorch_model"

    def test_one_model_of_accelerate(self, tmp_path: Path) -> None:
        make(tmp_path, f"pytorch_model/{MODEL}", f"global_step5/{MODEL}")
        (tmp_path / "latest").write_text("pytorch_model")
        assert find_run(tmp_path).tag == tmp_path / "pytorch_model"

    def test_latest_universal(self, tmp_path: Path) -> None:
        make(tmp_path, f"step2_universal/{MODEL}")
        (tmp_path / "latest_universal").write_text("step2_universal")
        assert find_run(tmp_path).tag == tmp_path / "step2_universal"

    def test_a_tag_with_slashes(self, tmp_path: Path) -> None:
        make(tmp_path, f"a/b/{MODEL}")
        (tmp_path / "latest").write_text("a/b")
        assert find_run(tmp_path).tag == tmp_path / "a" / "b"

    def test_a_tag_folder_belongs_to_the_run_around_it(self, tmp_path: Path) -> None:
        make(tmp_path, f"step1/{MODEL}", "latest")
        run = find_run(tmp_path / "step1")
        assert run.root == tmp_path and run.tag == tmp_path / "step1"

    def test_a_tag_folder_that_was_copied_alone(self, tmp_path: Path) -> None:
        make(tmp_path, f"step1/{MODEL}")
        run = find_run(tmp_path / "step1" / MODEL)
        assert run.root == run.tag == tmp_path / "step1"

    def test_a_given_tag_wins(self, tmp_path: Path) -> None:
        make(tmp_path, f"step1/{MODEL}", f"step2/{MODEL}")
        (tmp_path / "latest").write_text("step1")
        assert find_save(tmp_path, "step2", READERS).path == tmp_path / "step2"

    def test_the_newest_checkpoint_of_a_trainer(self, tmp_path: Path) -> None:
        for step in (2, 9, 10):
            make(tmp_path / f"checkpoint-{step}", f"global_step{step}/{MODEL}")
            (tmp_path / f"checkpoint-{step}" / "latest").write_text(f"global_step{step}")
        make(tmp_path / "checkpoint-11", "model.safetensors")
        run = find_run(tmp_path)
        assert run.tag == tmp_path / "checkpoint-10" / "global_step10"
        assert "checkpoint-10" in run.notes[0].text and "newest of 3" in run.notes[0].text

    def test_several_tags_without_latest(self, tmp_path: Path) -> None:
        make(tmp_path, f"a/{MODEL}", f"b/{MODEL}")
        with pytest.raises(UsageError) as caught:
            find_run(tmp_path)
        assert "a, b" in str(caught.value.hint)

    @pytest.mark.parametrize("text", ["none", "", "/", "..", "a/../..", "../x", "a/../../x", "a\0b", "a\nb"])
    def test_a_tag_that_cannot_be(self, tmp_path: Path, text: str) -> None:
        make(tmp_path / "run", f"a/{MODEL}")
        make(tmp_path / "x", MODEL)
        (tmp_path / "run" / "latest").write_text(text)
        with pytest.raises(FormatError) as caught:
            find_run(tmp_path / "run")
        assert "tags here: a" in str(caught.value.hint)

    def test_a_tag_without_states(self, tmp_path: Path) -> None:
        make(tmp_path, "a/readme", f"b/{MODEL}")
        (tmp_path / "latest").write_text("a")
        with pytest.raises(PlanError, match="no model or optimizer states"):
            find_run(tmp_path)


def test_what_looks_like_deepspeed(tmp_path: Path) -> None:
    make(tmp_path / "run", f"a/{MODEL}", "latest")
    make(tmp_path / "hf", "model.safetensors", "config.json")
    assert all(looks_like_deepspeed(tmp_path / p) for p in ("run", "run/a", f"run/a/{MODEL}", "run/latest"))
    assert not any(looks_like_deepspeed(tmp_path / p) for p in ("hf", "hf/model.safetensors", "none"))
