"""Parsers given anything at all come to a result that holds, or raise a CkptconvError.

The short form of ``make fuzz``.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.seeds import CORPUS, LARGEST, seeds
from fuzz.targets import TARGETS

NAMES = sorted(TARGETS)
short = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@st.composite
def changed(draw: st.DrawFn, target: str) -> bytes:
    """Draw a seed with some of its bytes replaced, dropped, repeated or put in."""
    data = bytearray(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        span = draw(st.integers(0, 9))
        how = draw(st.integers(0, 3))
        if how == 0:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif how == 1:
            del data[at : at + span]
        elif how == 2:
            data[at:at] = data[at : at + span]
        else:
            data[at:at] = draw(st.binary(max_size=9))
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
@short
@given(st.data())
def test_changed_files(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(changed(name)))


@pytest.mark.parametrize("name", NAMES)
@short
@given(st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)


OPCODES = (
    b"()]}.0123NKMJIFGXVBCTScibRoPQadesultpqrghj"
    b"\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8f\x90\x91\x92\x93\x94"
)


@short
@given(st.lists(st.sampled_from(OPCODES), max_size=80).map(lambda codes: bytes([*codes, ord(".")])))
def test_any_opcodes(data: bytes) -> None:
    TARGETS["unpickler"](data)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_what_was_found_once(name: str) -> None:
    for data in seeds(name):
        TARGETS[name](data)


def test_the_corpora_are_small() -> None:
    sizes = [p.stat().st_size for p in CORPUS.rglob("*") if p.is_file()]
    assert sizes and sum(sizes) < 1 << 20 and max(sizes) <= LARGEST
