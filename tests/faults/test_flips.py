"""One flipped bit in a real checkpoint, or in what it becomes, is found and named (at length: flips.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptconv.api import verify as roundtrip
from ckptconv.verify.compare import Comparer
from faults.flips import Flips, checkpoints
from running import CASES

CASE = CASES / "llama_z2_bf16_ws2_clientstate"


def flips(scratch: Path, times: int = 6) -> Flips:
    found = Flips(times)
    (path,) = checkpoints(CASE)
    found.case(path, CASE, scratch, {})
    return found


def test_a_case_loses_nothing(tmp_path: Path) -> None:
    found = flips(tmp_path)
    assert found.lost == [] and found.passed == []
    (tally,) = found.tallies.values()
    assert tally["pairs"] == 1 and tally["found"] >= 6  # all of the output's
    assert sum(tally[o] for o in ("found", "refused", "unread")) == 12


def test_a_comparison_that_sees_nothing_loses_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roundtrip.Comparer, "_differ", lambda self, *rest: None)
    assert Comparer is roundtrip.Comparer
    found = flips(tmp_path)
    assert len(found.lost) >= 6 and all("not found" in text for text in found.lost)
