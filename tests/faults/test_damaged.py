"""A damaged file of any format is refused, or makes no difference, or the difference is found.

The short form of ``make faults``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.damage import SAMPLES, Bench, Sample, peak_bytes, spoil_outputs
from faults.kinds import Source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("sources") / "base", 16, 2)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_is_refused_or_found(sample: Sample, source: Source, tmp_path: Path) -> None:
    before = peak_bytes()
    bench = Bench(sample, source, tmp_path)
    times = max(2, 12 // len(bench.files))
    bench.flip(times)
    bench.cut(times)
    bench.lie(times)
    assert not bench.lost, "\n".join(bench.lost)
    assert bench.tally["refused"] and bench.tally.total() >= 2 * times
    assert peak_bytes() - before < 256 << 20


def test_a_flipped_bit_of_an_output_is_found(source: Source, tmp_path: Path) -> None:
    for name, tally in spoil_outputs(source, tmp_path, 2).items():
        assert set(tally) == {"found"}, name
