"""A name told by a file of a checkpoint leads to a place in the checkpoint's folder, or is refused."""

from __future__ import annotations

import pytest

from ckptconv.places.inside import is_inside, is_plain_name


@pytest.mark.parametrize("path", ["a", "a/b.pt", "...", "..a", "step:5", " ", "a\nb"])
def test_inside(path: str) -> None:
    assert is_inside(path)


@pytest.mark.parametrize("path", ["", ".", "..", "/a", "a/../b", "../a", "a/..", "a//b", "a/", "./a", "a\0"])
def test_outside(path: str) -> None:
    assert not is_inside(path) and not is_plain_name(path)


@pytest.mark.parametrize("path", ["a\\..\\b", "C:\\a", "C:a"])
def test_outside_where_backslashes_part_folders(path: str) -> None:
    assert not is_inside(path)


def test_a_plain_name_has_no_folder() -> None:
    assert is_plain_name("a.safetensors") and not is_plain_name("a/b")
