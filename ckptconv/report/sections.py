"""Put together what reports say of one checkpoint: who holds what, layers by stage, sizes by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptconv.report.charts import grid, kinds, stages
from ckptconv.report.page import Cell, code, section, size, table

__all__ = ["is_ranked", "parts_of"]

Data = Mapping[str, Any]


def parts_of(data: Data, whose: str = "") -> list[str]:
    """Return sections on a checkpoint.

    Args:
        data: What ``inspect --json`` prints.
        whose: What the titles begin with, where a page is about several.
    """
    before = f"{whose}: " if whose else ""

    def title(words: str) -> str:
        return before + (words[0].lower() + words[1:] if before else words)

    held = grid(data["holders"]) if is_ranked(data) else _files(data["holders"])
    note = "Pieces: stored tensors that one tensor is made of. Copies: further ones that repeat it."
    return [
        section(title("Who holds what"), held),
        section(title("Layers by stage"), stages(data["stages"])),
        section(title("Sizes by kind of tensor"), kinds(data["kinds"]), note=note),
    ]


def is_ranked(data: Data) -> bool:
    """Whether what holds the tensors are ranks of a known grid."""
    return bool(data["holders"]) and all("pp" in h for h in data["holders"])


def _files(holders: Sequence[Data]) -> str:
    most = max((h["bytes"] for h in holders), default=0) or 1
    rows = [
        (
            Cell(code(h["name"])),
            Cell(f"{h['tensors']:,}", h["tensors"], right=True),
            Cell(size(h["copies"]) if h["copies"] else "", h["copies"], right=True),
            Cell(size(h["bytes"]), h["bytes"], right=True),
            Cell(f'<span class="bar" style="width:{100 * h["bytes"] / most:.2f}%"></span>', h["bytes"]),
        )
        for h in sorted(holders, key=lambda h: (-h["bytes"], len(h["name"]), h["name"]))
    ]
    heads = ("file", "tensors", "of them copies", "size", "share")
    return table(heads, rows, label="files") if rows else ""
