"""Describe one way of naming and packing the slots, and what such tables are written with."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from ckptconv.slots import (
    Entry,
    Pack,
    Table,
    concat,
    grouped,
    linear,
    one,
)
from ckptconv.slots.pack import over_leaves

__all__ = [
    "DOWN",
    "EXPERT",
    "EXPERT_DOWN",
    "EXPERT_GATE",
    "EXPERT_UP",
    "GATE",
    "IN_A_ROW",
    "IN_TURNS",
    "KEY_VALUE_UP",
    "QUERY",
    "QUERY_UP",
    "SHARED",
    "UP",
    "K",
    "Q",
    "Style",
    "V",
    "lines",
    "mtp_lines",
    "norm",
    "under",
]


@dataclass(frozen=True, slots=True)
class Style:
    """Describe one way of naming and packing.

    Words of ``when`` say which of several forms a checkpoint has: ``qkv_concat`` and ``mlp_concat`` (one
    tensor), ``qkv_contiguous`` and ``mlp_contiguous`` (its parts one after the other, not in turns),
    ``rearranged`` (rotary dimensions in halves), ``gmm`` (experts' weights transposed), ``wide`` (declared
    ``[hidden, experts*2*inner]``), ``mla``, ``q_lora``, ``mla_split``, ``sequential`` and more below.

    Attributes:
        name: Name for ``--dialect``.
        entries: Its tensors.
        words: The words that names tell, each with a pattern that one name at least matches.
        ignored: Patterns of buffers that are stored with the weights.
    """

    name: str
    entries: tuple[Entry, ...]
    words: Mapping[str, str]
    ignored: tuple[str, ...] = (r".*\.inv_freq",)

    def table(self, words: Collection[str]) -> Table:
        """Return the lines to look names and slots up in."""
        return Table(self.entries, holds=lambda word, layer: word in words)

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor is a buffer the model makes itself."""
        return any(re.fullmatch(p, name) for p in self.ignored)


def lines(slot: str | Pack, module: str, when: str = "", *, bias: bool = True) -> tuple[Entry, ...]:
    """Return a module's weight and the bias it may have, under the condition ``when``."""
    return tuple(replace(e, when=when or None) for e in linear(slot, module, bias=None if bias else False))


def norm(
    slot: str, stem: str, when: str = "", names: tuple[str, str] = ("weight", "bias")
) -> tuple[Entry, ...]:
    """Return a norm's weight and the bias it may have."""
    return (
        one(slot, f"{stem}.{names[0]}", when=when or None),
        one(f"{slot}.bias", f"{stem}.{names[1]}", when=when or None, optional=True),
    )


def under(prefix: str, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return entries with their names below a prefix."""
    return tuple(replace(e, name=prefix + e.name) for e in entries)


def mtp_lines(prefix: str, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Make the lines of a layer those of a layer for multi-token prediction."""
    return tuple(
        replace(e, name=prefix + e.name, pack=over_leaves(e.pack, lambda s: "mtp" + s.removeprefix("layers")))
        for e in entries
    )


Q, K, V = "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v"
GATE, UP, DOWN = "layers.*.mlp.gate", "layers.*.mlp.up", "layers.*.mlp.down"
EXPERT = "layers.*.moe.experts.{e}"
EXPERT_GATE, EXPERT_UP, EXPERT_DOWN = (f"{EXPERT}.{part}" for part in ("gate", "up", "down"))
SHARED = "layers.*.moe.shared"
IN_TURNS, IN_A_ROW = grouped("kv_heads", Q, K, V), concat(Q, K, V)
QUERY = grouped("heads", "layers.*.mla.q.nope", "layers.*.mla.q.rope")
QUERY_UP = grouped("heads", "layers.*.mla.q_b.nope", "layers.*.mla.q_b.rope")
KEY_VALUE_UP = grouped("heads", "layers.*.mla.kv_b.k", "layers.*.mla.kv_b.v")
