"""Layers on pipeline stages: against lists written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from ckptconv.errors import PlanError
from ckptconv.parallel import Chunk, Grid, chunk_order, number_layers, stage_layers
from ckptconv.parallel.stages import parse_layout


def held(grid: Grid, layers: int, **how: Any) -> dict[tuple[int, int], list[int]]:
    """Return the layers of each chunk."""
    return {(c.pp, c.vpp): list(n.values()) for c, n in stage_layers(grid, layers, **how).items()}


def test_stages_share_layers_evenly() -> None:
    assert held(Grid(pp=2), 4) == {(0, 0): [0, 1], (1, 0): [2, 3]}


def test_virtual_chunks_go_round() -> None:
    assert held(Grid(pp=2, vpp=2), 8) == {(0, 0): [0, 1], (1, 0): [2, 3], (0, 1): [4, 5], (1, 1): [6, 7]}


def test_dualpipev_folds() -> None:
    grid = Grid(pp=2, vpp=2, dualpipe=True)
    assert chunk_order(grid) == [Chunk(0, 0), Chunk(1, 0), Chunk(1, 1), Chunk(0, 1)]
    assert held(grid, 4) == {(0, 0): [0], (1, 0): [1], (1, 1): [2], (0, 1): [3]}
    assert held(grid, 7, counts=(1, 2, 3, 1)) == {(0, 0): [0], (1, 0): [1, 2], (1, 1): [3, 4, 5], (0, 1): [6]}


def test_first_and_last_stage_may_differ() -> None:
    assert held(Grid(pp=3), 8, first=2) == {(0, 0): [0, 1], (1, 0): [2, 3, 4], (2, 0): [5, 6, 7]}
    assert held(Grid(pp=3), 8, last=4) == {(0, 0): [0, 1], (1, 0): [2, 3], (2, 0): [4, 5, 6, 7]}
    assert held(Grid(pp=3), 8, first=1, last=4) == {(0, 0): [0], (1, 0): [1, 2, 3], (2, 0): [4, 5, 6, 7]}
    assert held(Grid(pp=2), 5, first=1, last=4) == {(0, 0): [0], (1, 0): [1, 2, 3, 4]}
    # Of four layers on the first stage the two chunks have two each.
    assert held(Grid(pp=2, vpp=2), 6, first=4) == {(0, 0): [0, 1], (1, 0): [2], (0, 1): [3, 4], (1, 1): [5]}


def test_embedding_and_loss_count_as_layers() -> None:
    assert held(Grid(pp=3), 4, embedding=True, loss=True) == {(0, 0): [0], (1, 0): [1, 2], (2, 0): [3]}
    assert held(Grid(pp=2), 3, embedding=True) == {(0, 0): [0], (1, 0): [1, 2]}
    assert held(Grid(pp=2, vpp=2), 7, loss=True) == {
        (0, 0): [0, 1], (1, 0): [2, 3], (0, 1): [4, 5], (1, 1): [6],
    }  # fmt: skip


def test_layers_for_each_stage() -> None:
    assert held(Grid(pp=2), 4, counts=(1, 3)) == {(0, 0): [0], (1, 0): [1, 2, 3]}
    assert held(Grid(pp=3), 3, counts=(0, 3, 0)) == {(0, 0): [], (1, 0): [0, 1, 2], (2, 0): []}
    assert held(Grid(pp=2, vpp=2), 6, counts=(1, 2, 1, 2)) == {
        (0, 0): [0], (1, 0): [1, 2], (0, 1): [3], (1, 1): [4, 5],
    }  # fmt: skip
    # One number a stage: its chunks share them.
    assert held(Grid(pp=2, vpp=2), 6, counts=(2, 4)) == {
        (0, 0): [0], (1, 0): [1, 2], (0, 1): [3], (1, 1): [4, 5],
    }  # fmt: skip


def test_layers_that_do_nothing_take_a_place_but_no_number() -> None:
    stages = stage_layers(Grid(pp=2), 4, noop=(0, 5))
    assert stages == {Chunk(0, 0): {1: 0, 2: 1}, Chunk(1, 0): {0: 2, 1: 3}}
    assert held(Grid(pp=2), 2, noop=(2, 3)) == {(0, 0): [0, 1], (1, 0): []}


def test_layers_found_are_numbered_through_the_model() -> None:
    grid = Grid(pp=2, vpp=2)
    found = {Chunk(0, 0): [0, 1], Chunk(1, 0): [1, 2], Chunk(0, 1): [0]}
    assert number_layers(grid, found) == {
        Chunk(0, 0): {0: 0, 1: 1}, Chunk(1, 0): {1: 2, 2: 3}, Chunk(0, 1): {0: 4}, Chunk(1, 1): {},
    }  # fmt: skip


@pytest.mark.parametrize("how", [dict(), dict(noop=(1, 6)), dict(counts=(3, 1, 2, 2)), dict(first=2, last=4)])
@pytest.mark.parametrize("fold", [False, True])
def test_what_is_placed_is_found(how: dict[str, Any], fold: bool) -> None:
    grid = Grid(pp=2, vpp=2, dualpipe=fold)
    stages = stage_layers(grid, 6 if how in (dict(noop=(1, 6)), dict(first=2, last=4)) else 8, **how)
    assert number_layers(grid, stages) == stages


@pytest.mark.parametrize(
    ("grid", "layers", "how", "what"),
    [
        (Grid(pp=2), 3, dict(), "3 layers cannot be divided over 2 pipeline chunks"),
        (Grid(pp=2, vpp=2), 6, dict(), "6 layers cannot be divided over 4"),
        (Grid(pp=2), 4, dict(embedding=True), "5 layers cannot be divided"),
        (Grid(pp=2), 4, dict(counts=(2, 3)), r"4 layers are not \[2, 3\] on 2 stages"),
        (Grid(pp=2), 4, dict(counts=(1, 1, 2)), r"4 layers are not \[1, 1, 2\] on 2 stages"),
        (Grid(pp=2), 4, dict(counts=(5, -1)), "5, -1"),
        (Grid(pp=2), 3, dict(noop=(9,)), r"no-op layers \[9\] are not all among the 4 positions"),
        (Grid(pp=3), 8, dict(first=3), "leave 5 for 2"),
        (Grid(pp=2), 8, dict(first=3, last=3), "leave 2 for 0"),
        (Grid(pp=2, vpp=2), 6, dict(first=3), "cannot be divided into 2 virtual chunks"),
        (Grid(pp=2), 3, dict(first=4), "leave -1 for 1"),
        (Grid(pp=1), 3, dict(first=1, last=2), "leave"),
        (Grid(pp=2, vpp=2), 8, dict(counts=(3, 5)), "3, 5"),
    ],
)
def test_layers_that_do_not_divide_are_refused(
    grid: Grid, layers: int, how: dict[str, Any], what: str
) -> None:
    with pytest.raises(PlanError, match=what):
        stage_layers(grid, layers, **how)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Et|ttt|ttL", [1, 3, 2]),
        ("E,t*3|(tt|)*2,t,L", [3, 2, 2, 1]),
        ("E|t*4|L", [0, 4, 0]),
        ("Ett|ttmL", [2, 2]),
        ("Ed*2|(t|)*3tL", [2, 1, 1, 1, 1]),
        ("E t | t L", [1, 1]),
        ("(tt|)*1t", [2, 1]),
    ],
)
def test_layouts(text: str, counts: list[int]) -> None:
    assert parse_layout(text) == counts


@pytest.mark.parametrize("text", ["Etx|t", "E(t", "t*", "3*t", "t*9999999", "((t*9000)*9000)*9000"])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="layout"):
        parse_layout(text)
