"""Verifying, comparing and explaining open each side once, and plan it once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptconv
from ckptconv.api import again, verify
from ckptconv.planning import plan as planning
from ckptconv.readers import registry
from running import DEMO


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often checkpoints were opened and planned."""
    counts = Counter[str]()
    opened = registry._open

    def opening(reader: Any, path: Path, options: object) -> Any:
        counts["opened"] += 1
        return opened(reader, path, options)

    def planning_of(plan: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **more: Any) -> Any:
            counts["planned"] += 1
            return plan(*given, **more)

        return counting

    monkeypatch.setattr(registry, "_open", opening)
    for module in (again, verify):
        monkeypatch.setattr(module, "plan_checkpoint", planning_of(planning.plan_checkpoint))
    return counts


@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_a_model(dtype: str, counted: Counter[str], tmp_path: Path) -> None:
    ckptconv.convert(DEMO, tmp_path / "out", dtype=dtype)
    counted.clear()
    assert ckptconv.verify_roundtrip(DEMO, tmp_path / "out").ok
    assert counted == {"opened": 2, "planned": 1}


@pytest.mark.parametrize("to", ["megatron", "torch_dist"])
def test_ranks(to: str, counted: Counter[str], tmp_path: Path) -> None:
    ckptconv.convert(DEMO, tmp_path / "out", to=to, tp=2, dtype="bfloat16")
    counted.clear()
    assert ckptconv.verify_roundtrip(DEMO, tmp_path / "out").ok
    assert counted == {"opened": 2, "planned": 2}  # each side once


def test_the_source_alone(counted: Counter[str]) -> None:
    assert ckptconv.verify_roundtrip(DEMO).ok
    assert counted == {"opened": 1, "planned": 1}


def test_comparing_and_explaining(counted: Counter[str], tmp_path: Path) -> None:
    ckptconv.convert(DEMO, tmp_path / "out", to="megatron", tp=2)
    counted.clear()
    assert ckptconv.diff(DEMO, tmp_path / "out").ok
    assert counted["opened"] == 2
    counted.clear()
    ckptconv.explain(DEMO, "model.norm.weight")
    assert counted["opened"] == 1
