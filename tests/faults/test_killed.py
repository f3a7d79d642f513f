"""A killed conversion of any kind leaves nothing that looks whole by mistake, and resumes to the same bytes.

The short form of ``make faults``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.killing import Killer
from faults.kinds import KINDS, Kind, Source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("sources") / "base", 96)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_is_killed_and_resumed(kind: Kind, source: Source, tmp_path: Path) -> None:
    count = Killer(kind, source, tmp_path, 1, ("--workers", "2", "--max-memory", "128KiB")).run(2)
    assert not count.lost, "\n".join(count.lost)
    assert count.inside == count.resumed >= 1, "no kill came in the middle of a run"
