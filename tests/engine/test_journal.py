"""The journal remembers whole files, survives torn lines, and locks its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ckptconv.engine.journal import JOURNAL, Journal, read_entries
from ckptconv.errors import OutputError


def test_entries_count_for_the_same_plan_only(tmp_path: Path) -> None:
    with Journal(tmp_path, "plan", resume=False) as journal:
        journal.add("a", "1")
        journal.add("b", "2")
    for plan, resume, done in (
        ("plan", True, {"a": "1", "b": "2"}),
        ("other", True, {}),
        ("other", False, {}),
    ):
        with Journal(tmp_path, plan, resume=resume) as journal:
            assert journal.done == done and journal.resumed == bool(done)


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    with Journal(tmp_path, "plan", resume=False) as journal:
        journal.add("a", "1")
    with Journal(tmp_path, "plan", resume=False) as journal:
        assert journal.done == {} and not journal.resumed
    entries = read_entries(tmp_path)
    assert entries is not None and entries.done == {}


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_last_line_loses_that_line_alone(tmp_path: Path, cut: int) -> None:
    with Journal(tmp_path, "plan", resume=False) as journal:
        journal.add("a", "1")
        journal.add("b", "2")
    path = tmp_path / JOURNAL
    last = len(json.dumps({"file": "b", "digest": "2"})) + 1
    os.truncate(path, path.stat().st_size - min(cut, last))
    whole = cut == 1  # only the newline is gone
    with Journal(tmp_path, "plan", resume=True) as journal:
        assert journal.done == ({"a": "1", "b": "2"} if whole else {"a": "1"})
        journal.add("c", "3")
    with Journal(tmp_path, "plan", resume=True) as journal:
        assert journal.done == ({"a": "1", "b": "2", "c": "3"} if whole else {"a": "1", "c": "3"})


def test_what_a_resumed_run_was_to_do_is_kept(tmp_path: Path) -> None:
    with Journal(tmp_path, "plan", resume=False, overwrite=True) as journal:
        assert journal.overwrite and not journal.naming
        journal.name_all()
    with Journal(tmp_path, "plan", resume=True) as journal:
        assert journal.overwrite and journal.naming


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path, "plan", resume=False):
        for plan in ("plan", "other"):
            with pytest.raises(OutputError, match="another run") as caught:
                Journal(tmp_path, plan, resume=True)
            assert caught.value.hint and caught.value.where == str(tmp_path)
        with pytest.raises(OutputError, match="another run"):
            read_entries(tmp_path)
    with Journal(tmp_path, "plan", resume=True):
        pass


def test_a_journal_taken_away_while_waiting_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that held the lock ended and removed the file between opening and locking it."""
    import fcntl

    real = fcntl.flock

    def late(*arguments: int) -> None:
        (tmp_path / JOURNAL).unlink()
        real(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputError, match="just ended"):
        Journal(tmp_path, "plan", resume=False)


def test_no_journal_no_entries(tmp_path: Path) -> None:
    assert read_entries(tmp_path) is None


def test_remove(tmp_path: Path) -> None:
    with Journal(tmp_path, "plan", resume=False) as journal:
        journal.remove()
        journal.remove()
    assert not list(tmp_path.iterdir())
