"""Names of DDP, torch.compile and FSDP wrappers are taken off, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptconv
from ckptconv.errors import PlanError


def names(tmp_path: Path, *given: str) -> list[str]:
    torch.save({n: torch.ones(2) * i for i, n in enumerate(given)}, tmp_path / "x.pt")
    return list(ckptconv.open(tmp_path / "x.pt"))


def test_a_prefix_around_every_name_goes(tmp_path: Path) -> None:
    assert names(tmp_path, "module.a.weight", "module.b") == ["a.weight", "b"]
    assert names(tmp_path, "module.module.a", "module.module.b") == ["a", "b"]


def test_a_prefix_of_some_names_is_the_models_own(tmp_path: Path) -> None:
    assert names(tmp_path, "module.a", "b") == ["module.a", "b"]


def test_compiled_and_sharded_submodules_are_found_anywhere(tmp_path: Path) -> None:
    given = ["_orig_mod.a", "layers.0._orig_mod.w", "_fsdp_wrapped_module.l.0._checkpoint_wrapped_module.w"]
    assert names(tmp_path, *given) == ["a", "layers.0.w", "l.0.w"]
    assert names(tmp_path, "my_orig_mod.a") == ["my_orig_mod.a"]


def test_values_follow_their_names_and_a_note_says_so(tmp_path: Path) -> None:
    names(tmp_path, "module.a", "module._orig_mod.b")
    model = ckptconv.open(tmp_path / "x.pt")
    assert model.read("b").tolist() == [1, 1]
    assert any("module.a is a" in n.text for n in model.checkpoint.notes)


def test_two_tensors_of_one_bare_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"_orig_mod\.a would be named a"):
        names(tmp_path, "a", "_orig_mod.a")
