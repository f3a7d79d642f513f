"""A mean is the same whatever the runs it is computed in, and counts what becomes infinite."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptconv.dtypes import BY_NAME, DType
from ckptconv.engine import mean
from ckptconv.engine.gather import Array
from ckptconv.engine.mean import fill_mean
from ckptconv.relations import Mean

_KINDS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def _infinite(total: Array, result: Array, dtype: DType) -> int:
    return int(np.isinf(result).sum() - np.isinf(total).sum())


def _fill(
    held: dict[str, Array], ratios: tuple[float, ...], name: str, lo: int, hi: int
) -> tuple[Array, int]:
    dtype = BY_NAME[name]
    out = np.empty((hi - lo) * dtype.itemsize, np.uint8)
    term = Mean(tuple(held), ratios)
    count = fill_mean(term, lo, dtype, out, lambda n, a, b: held[n][a:b].copy(), _infinite)
    return out.view(_KINDS[name]), count


@given(st.integers(1, 4), st.sampled_from([*_KINDS]), st.integers(1, 7), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_mean_does_not_depend_on_its_runs(count: int, name: str, step: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    held = {f"{i}": random.standard_normal(50).astype(np.float32) for i in range(count)}
    ratios = tuple(random.random(count).tolist())
    whole, _ = _fill(held, ratios, name, 0, 50)
    parts = [_fill(held, ratios, name, lo, min(50, lo + step))[0] for lo in range(0, 50, step)]
    assert whole.tobytes() == np.concatenate(parts).tobytes()
    total = np.float32(ratios[0]) * held["0"]
    for ratio, values in zip(ratios[1:], [*held.values()][1:], strict=True):
        total = total + np.float32(ratio) * values
    assert whole.tobytes() == total.astype(_KINDS[name]).tobytes()


def test_long_runs_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {n: np.arange(1000, dtype=np.float32) for n in "ab"}
    asked: list[int] = []
    monkeypatch.setattr(mean, "_LEAST", 16)
    out = np.empty(4000, np.uint8)

    def read(name: str, lo: int, hi: int) -> Array:
        asked.append(hi - lo)
        return held[name][lo:hi].copy()

    fill_mean(Mean(("a", "b"), (0.5, 0.5)), 0, BY_NAME["float32"], out, read, _infinite)
    assert max(asked) <= 1000 and out.view(np.float32).tolist() == held["a"].tolist()


def test_what_becomes_infinite_is_counted() -> None:
    held = {n: np.array([1.0, 6e4, 3e38], np.float32) for n in "ab"}
    values, count = _fill(held, (1.0, 1.0), "float16", 0, 3)
    assert count == 1 and np.isinf(values).tolist() == [False, True, True]  # one was before
