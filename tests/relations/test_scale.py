"""Thousands of ranks and parameters are planned in seconds, in memory that follows the list of pairs."""

from __future__ import annotations

import tracemalloc
from random import Random
from time import process_time

import pytest

from ckptconv.relations.packing import partitioned, split
from ckptconv.relations.pair import Drop, Pair, Spec
from ckptconv.relations.relation import Relation

SIZES = (4096, 4096 * 4096, 4096 * 1024, 7, 128, 14336 * 4096, 100_003, 999, 1000, 1001, 5, 12_345)


def zero(ranks: int, parameters: int) -> tuple[Relation, Relation]:
    """Return (files of ranks to the virtual tensor, virtual tensor to parameters) of a ZeRO-3 run."""
    random = Random(0)
    numels = [random.choice(SIZES) for _ in range(parameters)]
    row = sum(-(-n // ranks) for n in numels)
    pairs: list[Pair] = []
    drops: list[Drop] = []
    column = 0
    for i, numel in enumerate(numels):
        more, padding = partitioned(f"p{i}", numel, ranks, "zero", row, column)
        pairs += more
        drops += padding
        column += -(-numel // ranks)
    virtual = {"zero": Spec((ranks, row), "float32")}
    right = {f"p{i}": Spec((n,), "float32") for i, n in enumerate(numels)}
    files = split([f"rank{r}" for r in range(ranks)], "zero", virtual["zero"], axis=0)
    return files, Relation(virtual, right, tuple(pairs), tuple(drops))


def test_512_ranks_of_1000_parameters_are_checked_in_seconds() -> None:
    begin = process_time()
    files, parameters = zero(512, 1000)
    parameters.check()
    files.check()
    assert parameters.compose(parameters.invert()).is_identity()
    assert parameters.invert().compose(parameters).is_identity()
    part = parameters.select(["p5", "p6", "p7"])
    expanded = files.select(part.left).compose(part)
    numel = sum(spec.numel for spec in expanded.right.values())
    assert sum(pair.right.numel for pair in expanded.pairs) == numel
    assert len(expanded.pairs) <= 3 * 513
    assert process_time() - begin < 10


def test_20000_shards_are_composed_and_checked_in_seconds() -> None:
    begin = process_time()
    spec = Spec((64, 64), "bfloat16")
    shards = Relation.union(
        split([f"r{r}/t{i}" for r in range(8)], f"t{i}", spec, axis=i % 2) for i in range(2500)
    )
    shards.check()
    back = shards.compose(shards.invert())
    assert len(back.pairs) == 20_000
    assert back.is_identity()
    assert process_time() - begin < 15


@pytest.mark.slow
def test_2048_ranks_of_47000_parameters_stay_in_bounded_memory() -> None:
    tracemalloc.start()
    try:
        files, parameters = zero(2048, 47_000)
        assert len(parameters.pairs) <= 94_000
        parameters.check()
        assert parameters.invert().compose(parameters).is_identity()
        part = parameters.select(["p1"])
        assert len(files.select(part.left).compose(part).pairs) <= 2049
        assert tracemalloc.get_traced_memory()[1] < 400 * 2**20
    finally:
        tracemalloc.stop()
