"""Lay out tensor, pipeline and expert parallel ranks as Megatron does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import lcm
from typing import Final, NamedTuple

from ckptconv.errors import PlanError
from ckptconv.records import dataclass

__all__ = ["Grid", "Rank"]


class Rank(NamedTuple):
    """Place one model-parallel rank: tensor, pipeline and expert rank, each from 0."""

    tp: int
    pp: int
    ep: int


_MOST_RANKS: Final = 1 << 20  # lists are made of as many
_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")


@dataclass(frozen=True, slots=True)
class Grid:
    """Describe how many ranks share a model, and which of them exist.

    Attributes:
        tp: Tensor parallel size.
        pp: Pipeline parallel size.
        vpp: Virtual pipeline chunks on each stage.
        ep: Expert parallel size.
        etp: Expert tensor parallel size; experts are cut over it, other weights over ``tp``.
        extended: Experts are spread over ``ep * tp`` ranks, uncut (MindSpeed's ``moe_tp_extend_ep``).
        dualpipe: The second chunk of each stage runs through the stages backwards (MindSpeed's
            ``dualpipev``).
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    extended: bool = False
    dualpipe: bool = False

    def __post_init__(self) -> None:
        sizes = {"tp": self.tp, "pp": self.pp, "vpp": self.vpp, "ep": self.ep, "etp": self.etp}
        if wrong := [f"{name} {size}" for name, size in sizes.items() if size < 1]:
            raise PlanError(f"a parallel size must be at least 1, not {', '.join(wrong)}")
        if self.tp * self.pp * self.vpp * self.ep * self.etp > _MOST_RANKS:
            raise PlanError(
                "the parallel sizes " + ", ".join(f"{n} {s}" for n, s in sizes.items()) + " are none"
            )
        if self.tp % self.etp:
            raise PlanError(
                f"expert tensor parallel size {self.etp} does not divide tensor parallel size {self.tp}",
                hint="ranks of one tensor and expert rank would overwrite each other's file; "
                "choose a size that divides it",
            )
        if self.extended and self.etp != 1:
            raise PlanError(
                "experts spread over tensor and expert ranks are not cut: expert tensor parallel size 1"
            )
        if self.dualpipe and self.vpp != 2:
            raise PlanError(f"dualpipev has two chunks a stage, not {self.vpp}")

    @property
    def blocks(self) -> int:
        """Into how many blocks the experts are divided."""
        return self.ep * self.tp if self.extended else self.ep

    def ranks(self) -> list[Rank]:
        """List the ranks that exist, each with a file of its own.

        Where experts are cut less than other weights, only some pairs of tensor and expert rank do: global
        rank ``r`` has tensor rank ``r % tp`` and expert rank ``r // etp % ep`` (Megatron-LM, core 0.16.1,
        ``megatron/core/parallel_state.py``, ``RankGenerator``).
        """
        if self.extended:
            pairs = {(t, e) for t in range(self.tp) for e in range(self.ep)}
        else:
            period = lcm(self.tp, self.etp * self.ep)
            pairs = {(r % self.tp, r // self.etp % self.ep) for r in range(period)}
        return [Rank(t, p, e) for t, e in sorted(pairs) for p in range(self.pp)]

    def folder(self, rank: Rank) -> str:
        """Name a rank's folder (Megatron-LM, core 0.16.1, ``megatron/training/checkpointing.py``)."""
        pipeline = f"_{rank.pp:03d}" if self.pp > 1 else ""
        expert = f"_{rank.ep:03d}" if self.ep > 1 else ""
        return f"mp_rank_{rank.tp:02d}{pipeline}{expert}"

    def experts(self, rank: Rank) -> tuple[int, int]:
        """Return which block of experts a rank holds, and which slice of each."""
        if self.extended:
            return rank.ep * self.tp + rank.tp, 0
        return rank.ep, rank.tp % self.etp

    @staticmethod
    def numbers(folders: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the numbers in the names of rank folders: tensor rank, then one or two more."""
        found = {}
        for name in folders:
            if (match := _FOLDER.fullmatch(name)) is not None:
                found[name] = tuple(int(n) for n in match.groups() if n is not None)
        return found

    def describe(self) -> dict[str, int | bool]:
        """Return the sizes that are not 1, by their short names."""
        sizes: dict[str, int | bool] = {"tp": self.tp, "pp": self.pp}
        if self.vpp > 1:
            sizes["vpp"] = self.vpp
        if self.ep > 1:
            sizes |= {"ep": self.ep, "etp": self.etp}
        if self.extended:
            sizes["tp_extends_ep"] = True
        if self.dualpipe:
            sizes["dualpipev"] = True
        return sizes
