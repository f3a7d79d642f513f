"""Casts without torch give the bits torch gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptconv.dtypes import BY_NAME, DType, numpy_dtype
from ckptconv.numbers.casts import cast, cast_chain, is_exact

SMALL = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
WIDE = ("float32", "float64")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _all(name: str) -> torch.Tensor:
    """Return every value of a small type."""
    if BY_NAME[name].itemsize == 1:
        return torch.arange(256, dtype=torch.uint8).view(getattr(torch, name))
    return torch.arange(1 << 16).to(torch.int32).to(torch.uint16).view(getattr(torch, name))


def _array(tensor: torch.Tensor, dtype: DType) -> np.ndarray:
    return tensor.contiguous().view(_BITS[dtype.itemsize]).numpy().view(numpy_dtype(dtype))


def _check(values: torch.Tensor, target: str) -> None:
    source = BY_NAME[str(values.dtype).removeprefix("torch.")]
    to = BY_NAME[target]
    expected = values.to(getattr(torch, target))
    found = torch.from_numpy(cast(_array(values, source), source, to).view(f"u{to.itemsize}"))
    number = ~expected.float().isnan()
    assert torch.equal(found.view(expected.dtype).float().isnan(), ~number)
    bits = _BITS[to.itemsize]
    assert torch.equal(found.view(bits)[number], expected.view(bits)[number])


@pytest.mark.parametrize("target", [*SMALL[:2], *WIDE])
@pytest.mark.parametrize("source", SMALL)
def test_every_value_of_the_small_types(source: str, target: str) -> None:
    _check(_all(source), target)


@pytest.mark.parametrize("target", [*SMALL[:2], *WIDE])
@pytest.mark.parametrize("source", SMALL)
def test_many_values_of_the_small_types(source: str, target: str) -> None:
    """So many that they are looked up, and that the last block is a part of one."""
    values = _all(source)
    indices = torch.randint(0, len(values), (300_001,), generator=torch.Generator().manual_seed(2))
    bits = values.view(_BITS[values.itemsize])
    _check(bits[indices].view(values.dtype), target)


@pytest.mark.parametrize("target", [*SMALL[:2], *WIDE])
@pytest.mark.parametrize("source", WIDE)
def test_random_bits(source: str, target: str) -> None:
    generator = torch.Generator().manual_seed(1)
    integers = {"float32": torch.int32, "float64": torch.int64}[source]
    bits = torch.randint(-(1 << 31), 1 << 31, (200_000,), generator=generator)
    if source == "float64":
        bits = (bits << 32) | torch.randint(0, 1 << 32, bits.shape, generator=generator)
    _check(bits.to(integers).view(getattr(torch, source)), target)


@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.sampled_from(SMALL[:2]))
def test_any_floats(values: list[float], target: str) -> None:
    _check(torch.tensor(values, dtype=torch.float32), target)


@pytest.mark.parametrize("size", [0, 1, 7, (1 << 16) - 1, 1 << 16, (1 << 16) + 1])
def test_any_length(size: int) -> None:
    _check(torch.linspace(-9, 9, size), "bfloat16")


def test_the_same_type_is_no_copy() -> None:
    values = np.zeros(4, np.float32)
    assert cast(values, BY_NAME["float32"], BY_NAME["float32"]) is values


def test_the_result_may_go_where_it_is_wanted() -> None:
    values = np.linspace(-3, 3, 101, dtype=np.float32)
    for name in ("float32", "float16"):
        out = np.zeros(101, name)
        assert cast(values, BY_NAME["float32"], BY_NAME[name], out=out) is out
        assert np.array_equal(out, values.astype(name))


def test_integers_are_never_cast() -> None:
    with pytest.raises(ValueError, match="int64"):
        cast(np.zeros(4, np.int64), BY_NAME["int64"], BY_NAME["float32"])


def test_a_chain_rounds_at_every_step() -> None:
    values = torch.linspace(-3, 3, 1001)
    chain = [BY_NAME[n] for n in ("float32", "bfloat16", "float32")]
    found = np.empty(values.numel(), np.float32)
    cast_chain(_array(values, chain[0]), chain, found)
    assert np.array_equal(found, values.bfloat16().float().numpy())


@pytest.mark.parametrize("target", [*SMALL, *WIDE])
@pytest.mark.parametrize("source", SMALL)
def test_a_cast_called_exact_is_undone_by_its_inverse(source: str, target: str) -> None:
    if not is_exact(BY_NAME[source], BY_NAME[target]):
        return
    values = _all(source)
    there = cast(_array(values, BY_NAME[source]), BY_NAME[source], BY_NAME[target])
    back = cast(there, BY_NAME[target], BY_NAME[source])
    number = ~values.float().isnan().numpy()
    raw = f"u{BY_NAME[source].itemsize}"
    assert np.array_equal(back.view(raw)[number], _array(values, BY_NAME[source]).view(raw)[number])


def test_what_is_exact() -> None:
    exact = {
        (a, b) for a in (*SMALL[:2], *WIDE) for b in (*SMALL[:2], *WIDE) if is_exact(BY_NAME[a], BY_NAME[b])
    }
    assert exact == {
        *((d, d) for d in (*SMALL[:2], *WIDE)),
        ("float16", "float32"), ("float16", "float64"), ("bfloat16", "float32"), ("bfloat16", "float64"),
        ("float32", "float64"),
    }  # fmt: skip
