"""Compare converted checkpoints with the true weights their training processes gathered.

A case is a folder as ``fixtures/README.md`` describes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

__all__ = ["VARIANTS", "Case", "Variant", "check", "find_cases", "read_output"]

_CUT_BY_COLUMNS = ("o_proj.weight", "down_proj.weight")
_CUT_BY_ROWS = (
    "q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight", "lm_head.weight",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """Name a way to convert: the flags beside the source and the output, and what they promise."""

    name: str
    flags: tuple[str, ...] = ()
    weights: Literal["fp32", "module"] = "fp32"
    dtype: torch.dtype | None = None
    suffix: str = ".safetensors"
    min_files: int = 1


VARIANTS = (
    Variant("masters"),
    Variant("model", ("--weights", "model"), weights="module"),
    Variant("bin", ("--format", "bin"), suffix=".bin"),
    Variant("shards", ("--max-shard-size", "8KB"), min_files=2),
    Variant("bfloat16", ("--dtype", "bfloat16"), dtype=torch.bfloat16),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint beside its answers."""

    path: Path
    facts: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> Case:
        return cls(path, json.loads((path / "case.json").read_text()))

    @property
    def sources(self) -> list[Path]:
        """Every form of the case's fp32 weights: what was saved, and what ``ds_to_universal`` made of it."""
        return [self.path / name for name in ("ckpt", "universal") if (self.path / name).is_dir()]

    @property
    def config_flags(self) -> tuple[str, ...]:
        """The flags that give the model's config, where there is one that the weights can match."""
        whole = not self.facts.get("exclude_frozen") and not self.facts.get("lora")
        if whole and (self.path / "config.json").exists():
            return ("--config", str(self.path))
        return ("--no-assets",)

    def answers(self, kind: str) -> dict[str, torch.Tensor]:
        """Return the true ``fp32`` or ``module`` weights, those of tensor-parallel ranks put together."""
        ranks = [load_file(f) for f in sorted(self.path.glob(f"gold_{kind}.tp*.safetensors"))]
        tensors = _merge(ranks) if ranks else load_file(self.path / f"gold_{kind}.safetensors")
        if self.facts.get("exclude_frozen"):
            frozen = set(self.facts["frozen_names"])
            return {name: t for name, t in tensors.items() if name not in frozen}
        return tensors


def find_cases(*roots: Path) -> list[Case]:
    """Return the cases below ``roots``, by name."""
    return [Case.load(f.parent) for root in roots for f in sorted(root.rglob("case.json"))]


def check(case: Case, variant: Variant, out: Path) -> None:
    """Assert that ``out`` holds exactly the case's weights as ``variant`` promises them, bit for bit."""
    files = [f for f in out.iterdir() if f.suffix == variant.suffix]
    expected = {name: _cast(t, variant.dtype) for name, t in case.answers(variant.weights).items()}
    total = sum(t.nbytes for t in expected.values())
    assert len(files) >= (variant.min_files if total > 20_000 else 1), sorted(f.name for f in files)
    written = read_output(out, variant.suffix)
    for alias, kept in case.facts.get("tied", {}).items():
        if alias in written:
            _assert_same(alias, written.pop(alias), expected[kept])
    assert set(written) == set(expected), sorted(set(written) ^ set(expected))
    for name, tensor in expected.items():
        _assert_same(name, written[name], tensor)


def read_output(out: Path, suffix: str) -> dict[str, torch.Tensor]:
    """Return every tensor of a model's folder; the index must name each in the file that holds it."""
    tensors: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}
    for file in sorted(f for f in out.iterdir() if f.suffix == suffix):
        part = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
        assert not tensors.keys() & part.keys(), f"{file} repeats tensors of another file"
        tensors.update(part)
        places.update(dict.fromkeys(part, file.name))
    indexes = list(out.glob(f"*{suffix}.index.json"))
    assert len(indexes) == int(len(set(places.values())) > 1), (
        "an index where, and only where, there are shards"
    )
    for index in indexes:
        content = json.loads(index.read_text())
        assert content["weight_map"] == places
        assert content["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    return tensors


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _assert_same(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype, f"{name} is {found.dtype}, not {expected.dtype}"
    assert found.shape == expected.shape, f"{name} is {tuple(found.shape)}, not {tuple(expected.shape)}"
    bits = [t.contiguous().flatten().view(torch.uint8) for t in (found, expected)]
    assert torch.equal(*bits), f"{name} differs"


def _merge(ranks: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put together what AutoTP cut (deepspeed 0.19.8, ``module_inject/auto_tp.py``)."""
    return dict(_merged(ranks))


def _merged(ranks: list[dict[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, first in ranks[0].items():
        parts = [rank[name] for rank in ranks]
        if name.endswith(_CUT_BY_COLUMNS):
            yield name, torch.cat(parts, dim=1)
        elif name.endswith(_CUT_BY_ROWS):
            yield name, torch.cat(parts, dim=0)
        else:
            assert all(torch.equal(first, part) for part in parts), f"{name} differs between ranks"
            yield name, first
