"""The grid of ranks: which exist, what their folders are called, which experts each holds."""

from __future__ import annotations

import pytest

from ckptconv.errors import PlanError
from ckptconv.parallel import Grid, Rank


def folders(grid: Grid) -> list[str]:
    return [grid.folder(rank) for rank in grid.ranks()]


def test_folders_name_only_the_sizes_beyond_one() -> None:
    assert folders(Grid()) == ["mp_rank_00"]
    assert folders(Grid(tp=2)) == ["mp_rank_00", "mp_rank_01"]
    assert folders(Grid(pp=2)) == ["mp_rank_00_000", "mp_rank_00_001"]
    assert folders(Grid(tp=2, ep=2, etp=2)) == [
        "mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001",
    ]  # fmt: skip
    assert Grid(tp=16, pp=2, ep=2, etp=16).folder(Rank(11, 1, 0)) == "mp_rank_11_001_000"


def test_virtual_chunks_are_no_folders() -> None:
    assert folders(Grid(pp=2, vpp=3)) == ["mp_rank_00_000", "mp_rank_00_001"]


def test_experts_cut_less_than_other_weights_leave_holes() -> None:
    # Global rank r has tensor rank r % 2 and expert rank r % 2: the others never save.
    assert Grid(tp=2, ep=2, etp=1).ranks() == [Rank(0, 0, 0), Rank(1, 0, 1)]
    # r: tensor rank r % 4, expert rank r // 2 % 4, of eight ranks.
    assert [(r.tp, r.ep) for r in Grid(tp=4, ep=4, etp=2).ranks()] == [
        (0, 0), (0, 2), (1, 0), (1, 2), (2, 1), (2, 3), (3, 1), (3, 3),
    ]  # fmt: skip
    # Two expert blocks and three tensor ranks share no factor: every pair exists.
    assert len(Grid(tp=3, ep=2, etp=1).ranks()) == 6


def test_every_stage_has_the_same_pairs() -> None:
    grid = Grid(tp=2, pp=3, ep=4, etp=1)
    pairs = {(r.tp, r.ep) for r in grid.ranks()}
    assert pairs == {(0, 0), (1, 1), (0, 2), (1, 3)}
    assert sorted(grid.ranks()) == sorted(Rank(t, p, e) for t, e in pairs for p in range(3))


def test_every_expert_slice_is_held() -> None:
    for tp in (1, 2, 3, 4, 6):
        for etp in (n for n in range(1, tp + 1) if tp % n == 0):
            for ep in (1, 2, 3, 4):
                grid = Grid(tp=tp, ep=ep, etp=etp)
                held = {grid.experts(rank) for rank in grid.ranks()}
                assert held == {(block, part) for block in range(ep) for part in range(etp)}
                assert {rank.tp for rank in grid.ranks()} == set(range(tp))


def test_experts_over_tensor_ranks_too() -> None:
    grid = Grid(tp=2, ep=2, etp=1, extended=True)
    assert grid.blocks == 4
    assert {rank: grid.experts(rank) for rank in grid.ranks()} == {
        Rank(0, 0, 0): (0, 0), Rank(1, 0, 0): (1, 0), Rank(0, 0, 1): (2, 0), Rank(1, 0, 1): (3, 0),
    }  # fmt: skip


def test_numbers_of_folders() -> None:
    names = [
        "mp_rank_00",
        "mp_rank_01_002",
        "mp_rank_12_003_104",
        "mp_rank_0",
        "iter_0000001",
        "mp_rank_00_0",
    ]
    assert Grid.numbers(names) == {
        "mp_rank_00": (0,),
        "mp_rank_01_002": (1, 2),
        "mp_rank_12_003_104": (12, 3, 104),
    }


def test_describe_says_what_matters() -> None:
    assert Grid(tp=2).describe() == {"tp": 2, "pp": 1}
    assert Grid(tp=2, pp=3, vpp=2, ep=4, etp=2).describe() == {"tp": 2, "pp": 3, "vpp": 2, "ep": 4, "etp": 2}
    assert Grid(tp=2, ep=1, etp=1, extended=True).describe()["tp_extends_ep"] is True
    assert Grid(pp=2, vpp=2, dualpipe=True).describe()["dualpipev"] is True


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        (dict(tp=0), "at least 1, not tp 0"),
        (dict(pp=-1, ep=0), "pp -1, ep 0"),
        (dict(tp=4, etp=3), "size 3 does not divide tensor parallel size 4"),
        (dict(tp=2, etp=4), "size 4 does not divide tensor parallel size 2"),
        (dict(tp=2, etp=2, extended=True), "not cut"),
        (dict(pp=2, vpp=3, dualpipe=True), "two chunks a stage, not 3"),
    ],
)
def test_impossible_grids_are_refused(sizes: dict[str, int], what: str) -> None:
    with pytest.raises(PlanError, match=what):
        Grid(**sizes)  # type: ignore[arg-type]
