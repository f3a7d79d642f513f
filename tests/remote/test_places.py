"""A URL is a path: what `pathlib` promises holds for it, and nothing on disk is touched."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import UsageError
from ckptconv.places.places import forget, is_remote, place
from ckptconv.places.regular import open_binary


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe({"/run/a.bin": b"0123456789", "/run/sub/b.bin": b"b", "/run/sub/deep/c.txt": b"text"})
    forget()
    yield fs
    fs.store.clear()
    forget()


@pytest.mark.parametrize("text", ["s3://bucket/run/x.pt", "hf://org/model@main/config.json", "memory://a"])
def test_a_url_keeps_its_text(text: str) -> None:
    path = place(text)
    assert str(path) == os.fspath(path) == path.as_posix() == text
    assert place(str(path)) == path and place(path) is path
    assert str(place(Path(text))) == text  # pathlib takes a slash away
    assert str(pickle.loads(pickle.dumps(path))) == text
    assert isinstance(path, Path) and path.is_absolute() and is_remote(path)


def test_parts_of_a_url() -> None:
    path = place("s3://bucket/run/x.pt")
    assert (path.name, path.stem, path.suffix) == ("x.pt", "x", ".pt")
    assert str(path.parent) == "s3://bucket/run" and str(path.parent / "y") == "s3://bucket/run/y"
    assert str(path.relative_to(path.parent.parent)) == "run/x.pt"
    assert str(path.with_name("z")) == "s3://bucket/run/z"
    assert str((path.parent / "../other").resolve()) == "s3://bucket/other"
    assert str(place("s3://bucket/../../..").resolve()) == "s3:"
    assert sorted([path, path.parent]) == [path.parent, path] and len({path, place(str(path))}) == 1
    assert not place("s3://").exists() and not (path / "/etc/passwd").exists()


def test_paths_on_disk_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(place("run/a")) is type(Path()) and not is_remote("run/a")
    assert place(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    monkeypatch.chdir(tmp_path)
    Path("s3:/x").mkdir(parents=True)
    assert type(place(Path("s3:/x"))) is type(Path())


def test_folders_are_listed_once_until_forgotten(memory, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = type(memory).ls
    record = lambda self, path, **k: calls.append(path) or real(self, path, **k)  # noqa: E731
    monkeypatch.setattr(type(memory), "ls", record)
    run = place("memory://run")
    assert run.is_dir() and (run / "a.bin").is_file() and not (run / "none").exists()
    assert (run / "a.bin").stat().st_size == 10
    assert sorted(p.name for p in run.iterdir()) == ["a.bin", "sub"]
    assert [str(p) for p in run.glob("*/*.bin")] == ["memory://run/sub/b.bin"]
    assert [p.name for p in run.rglob("*.txt")] == ["c.txt"]
    assert len(calls) == len(set(calls))
    memory.pipe("/run/new", b"")
    assert not (run / "new").exists()
    forget()
    assert (run / "new").is_file()


def test_nothing_is_written_through_a_path(memory) -> None:
    path = place("memory://run/a.bin")
    for act in (path.unlink, path.mkdir, lambda: path.write_bytes(b""), lambda: path.open("wb")):
        with pytest.raises(OSError):
            act()


def test_a_file_is_read_in_blocks(memory, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB
    memory.pipe("/run/large", data)
    forget()
    calls = []
    real = type(memory).cat_file
    record = lambda self, p, start, end: calls.append(end - start) or real(self, p, start, end)  # noqa: E731
    monkeypatch.setattr(type(memory), "cat_file", record)
    for _ in range(2):  # what was read is remembered for whoever opens it next
        with open_binary("memory://run/large") as file:
            assert file.read(8) == data[:8]
            file.seek(-22, os.SEEK_END)
            assert file.read() == data[-22:]
            file.seek(-65536, os.SEEK_END)
            assert file.read(10) == data[-65536:-65526]
    assert len(calls) == 2
    with open_binary("memory://run/large") as file:
        assert file.read() == data
    assert sum(calls) <= len(data) + 3 * (128 << 10)


def test_a_missing_package_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"gs://") as caught:
        place("gs://bucket/run").exists()
    assert caught.value.hint == "pip install 'ckptconv[remote]' gcsfs"


def test_an_unknown_scheme_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="gopher"):
        place("gopher://run").exists()


def test_nothing_of_it_is_imported_for_what_is_on_disk(demo_run: Path) -> None:
    code = (
        "import sys, ckptconv; ckptconv.open(sys.argv[1]);"
        "print([m for m in ('fsspec', 's3fs', 'ckptconv.places.remote') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo_run)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_headers_of_an_archive_are_asked_for_together(memory, tmp_path: Path, monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    torch.save({f"w{i}": torch.full((100_000,), float(i)) for i in range(20)}, tmp_path / "x.pt")
    memory.pipe("/run/x.pt", (tmp_path / "x.pt").read_bytes())
    forget()
    calls = []
    real = type(memory).cat_file
    record = lambda self, p, start, end: calls.append(end - start) or real(self, p, start, end)  # noqa: E731
    monkeypatch.setattr(type(memory), "cat_file", record)
    local, far = open_torch(tmp_path / "x.pt").root, open_torch("memory://run/x.pt").root
    assert [t.offset for t in far.values()] == [t.offset for t in local.values()]
    assert len(calls) <= 23 and sum(calls) <= 3 * (128 << 10)
