"""Any model split into any layout and merged is itself: from metadata alone, and in bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import ckptconv
from megatron_layouts import Drawn, flags_of, layouts, tensors_of, write_model

_FEW = settings(max_examples=int(__import__("os").environ.get("NEX","60")), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def _read(folder: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    found: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def _assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


@_FEW
@given(layouts())
def test_split_and_merged_bytes_are_the_model(drawn: Drawn) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = tensors_of(drawn.config)
        model = write_model(folder / "model", drawn.config, tensors)
        ckptconv.convert(model, folder / "ranks", to="megatron", **flags_of(drawn.options))
        ckptconv.convert(folder / "ranks", folder / "back", config=str(model))
        _assert_same(_read(folder / "back"), tensors)
