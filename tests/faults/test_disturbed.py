"""Whatever the kind of conversion: a full disk, a source that changes and a second run are found out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptconv.engine.fill import Filler
from ckptconv.engine.journal import JOURNAL, Journal
from faults.killing import final, takers, untimed
from faults.kinds import KINDS, Kind, Source
from running import ckptconv, contents, fails, mounted, succeeds

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("sources") / "base", 32, 2)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MB."""
    with mounted(tmp_path / "disk", "64m") as disk:
        yield disk


def _filled(disk: Path, left: int) -> Path:
    """Leave so many bytes free on a disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(disk / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - left)
    return disk / "ballast"


@every_kind
def test_a_disk_that_is_full(
    kind: Kind, source: Source, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes the space that was free when the run began."""
    whole, out = tmp_path / "whole", disk / "out"
    words = [*source.words(kind, whole), "--quiet"]
    if kind.old is not None:
        source.fill(kind, whole)
    succeeds(*words)
    size = sum(len(data) for data in contents(whole).values())
    if kind.old is not None:
        source.fill(kind, out)
    before = contents(out) if out.exists() else {}
    words[words.index(str(whole))] = str(out)
    ballast = _filled(disk, size * 3 // 4)
    with monkeypatch.context() as patch:
        patch.setattr("ckptconv.engine.run.check_space", lambda *arguments: None)
        result = ckptconv(*words)
    assert result.code == 1 and "No space left on device" in result.err, result.err
    resumes = "--resume" in result.err
    if before:
        assert final(out) == before
    elif out.exists():
        assert not takers(out, final(out))
    ballast.unlink()
    succeeds(*((*(w for w in words if w != "--overwrite"), "--resume") if resumes else words))
    assert untimed(contents(out)) == untimed(contents(whole))


@every_kind
def test_a_source_that_changes(
    kind: Kind, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = source.words(kind, out)
    if kind.old is not None:
        source.fill(kind, out)
    before = contents(out) if out.exists() else {}
    inner, changed = Filler.make, list[str]()

    def make(self: Filler, *arguments: Any) -> Any:
        """Touch an input once something has been read of it."""
        found = inner(self, *arguments)
        if not changed:
            path = next(iter({e.path for s in self._plan.stored.values() for e in s.extents}))
            changed.append(path)
            os.utime(path)
        return found

    monkeypatch.setattr(Filler, "make", make)
    message = fails(1, *words, "--quiet", naming=("changed while",))
    assert changed[0] in "".join(message.split())
    if before:
        assert final(out) == before
    else:
        assert not takers(out, final(out))


@every_kind
def test_a_second_run(kind: Kind, source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = source.words(kind, out)
    if kind.old is not None:
        source.fill(kind, out)
    out.mkdir(exist_ok=True)
    with Journal(out, "the other run's plan", resume=False):
        (out / "x.part").write_bytes(b"its work")
        before = contents(out)
        for flags in ((), ("--resume",), ("--overwrite",)):
            own = [w for w in words if w != "--overwrite"]
            fails(1, *own, *flags, "--quiet", naming=(str(out),))
            assert contents(out) == before
    assert (out / JOURNAL).exists()
