"""Any part of a quantised matrix, of any shape and in any order, holds the values the whole holds there."""

import random

import ml_dtypes
import numpy as np
import pytest
import torch

import ckptconv
import quantised
from ckptconv.containers.decoded import Decoded
from ckptconv.engine.decode import decode_rect
from ckptconv.engine.gather import _operand, gather
from ckptconv.errors import PlanError
from ckptconv.numbers.codecs import CODECS, codec
from ckptconv.numbers.codecs.base import round_into
from ckptconv.places.files import SourceFiles

NAME = "model.layers.0.mlp.down_proj.weight"


def bits(tensor):
    return (
        tensor.contiguous()
        .view(torch.int16 if tensor.element_size() == 2 else torch.int32)
        .numpy()
        .view("u2" if tensor.element_size() == 2 else "u4")
    )


@pytest.mark.parametrize("kind", quantised.KINDS)
def test_parts_hold_what_the_whole_does(tmp_path, kind):
    wanted = quantised.model(tmp_path, kind)[NAME]
    plan = ckptconv.plan(tmp_path, dequantize=True)
    (pair,) = [p for p in plan.relation.pairs if p.right.tensor == NAME]
    stored = plan.stored[pair.left.tensor]
    assert isinstance(stored, Decoded)
    stored = stored.rounded(ckptconv.dtypes.dtype(str(wanted.dtype)))
    whole = bits(wanted if stored.shape == tuple(wanted.shape) else wanted.T)
    rows, columns = whole.shape
    draw = random.Random(0)
    with SourceFiles(plan.inputs) as files:
        for _ in range(25):
            row, left = draw.randrange(rows), draw.randrange(columns)
            end, right = draw.randint(row + 1, rows), draw.randint(left + 1, columns)
            out = np.empty((end - row, right - left), whole.dtype)
            decode_rect(stored, (row, end, left, right), out, _operand(files, 1 << 20))
            assert np.array_equal(out, whole[row:end, left:right])
            turned = np.empty((right - left, end - row), whole.dtype)
            offset, limit = row * columns + left, draw.choice([1 << 8, 1 << 14, 1 << 20])
            gather(files, stored, offset, turned.shape, (1, columns), turned, limit)
            assert np.array_equal(turned.T, whole[row:end, left:right])
            step = draw.randint(1, 3)
            few = whole[row:end:step, left:right]
            out = np.empty(few.shape, whole.dtype)
            gather(files, stored, offset, few.shape, (step * columns, 1), out, limit)
            assert np.array_equal(out, few)


def test_rounding_to_float16_is_numpys():
    draw = np.random.default_rng(0)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    between = (halves[1:] + halves[:-1]) / 2
    edges = np.concatenate(
        [halves, between, np.nextafter(between, np.float32(9e9)), np.nextafter(between, np.float32(-9e9))]
    )
    normal = edges[(np.abs(edges) >= 2.0**-14) & (np.abs(edges) < 65500) | (edges == 0)]
    some = draw.normal(size=1 << 14).astype(np.float32)
    for values in (
        edges,
        normal,
        some,
        some * np.float32(1e-6),
        some * np.float32(1e6),
        np.zeros(9, np.float32),
    ):
        with np.errstate(all="ignore"):
            wanted = values.astype(np.float16)
        out = np.empty(values.shape, np.float16)
        round_into(values.copy(), out)
        assert np.array_equal(out.view(np.uint16), wanted.view(np.uint16))


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("scale", [0.3, 2.0**-7, 1.0078125, 2.0**-126, 3e38, -5.5])
def test_every_code_of_eight_bits_is_scaled_and_rounded_as_floats_are(kind, scale):
    """Ties go to even, the largest to infinity, subnormals keep what they can, whatever the scale."""
    every = torch.arange(256, dtype=torch.uint8).view(getattr(torch, kind)).repeat(64, 1)
    every = torch.where(every.float().isfinite(), every.float(), 1.0).to(getattr(torch, kind))
    scales = np.array([[scale, -scale]], np.float32)
    codes = every.view(torch.uint8).numpy().view(getattr(ml_dtypes, kind))
    params = {"rows": 64, "columns": 256, "period": 64, "block": (64, 128)}
    wanted = (every.float() * torch.from_numpy(scales).repeat_interleave(128, 1)).to(torch.bfloat16)
    out = np.empty((64, 256), ml_dtypes.bfloat16)
    codec("scaled").decode(params, (0, 64, 0, 256), {"codes": codes, "scales": scales}, out)
    assert np.array_equal(out.view(np.uint16), bits(wanted))


def test_codecs_are_found_by_name():
    assert CODECS.names == ["scaled", "fp4", "packed", "gptq", "awq", "bnb"]
    with pytest.raises(PlanError, match="no codec 'mine'"):
        codec("mine")
