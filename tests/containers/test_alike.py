"""Ranks' files that are like one before are not unpickled again, and nothing else is taken for like."""

from __future__ import annotations

import argparse
import io
import pickle
import random
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptconv.containers.torch import inert, rankfile
from ckptconv.containers.torch.rankfile import RankReader, read_rank


def save(path: Path, rank: int, seed: int = 0, **changed: Any) -> Path:
    model = {
        "a.weight": torch.full((3, 4), float(seed)),
        "a._extra_state": torch.empty(0),
        "b.weight": torch.ones(5),
    }
    args = argparse.Namespace(hidden_size=4, rank=rank, local_rank=rank % 8, **changed)
    path.parent.mkdir(exist_ok=True)
    torch.save({"args": args, "checkpoint_version": 3.0, "iteration": 7, "model": model}, path)
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of the files that are unpickled."""
    found: list[Path] = []

    def counted(path: Path, *, exact: bool = False) -> rankfile.RankFile:
        found.append(path)
        return read_rank(path, exact=exact)

    monkeypatch.setattr(rankfile, "read_rank", counted)
    return found


def same(a: rankfile.RankFile, b: rankfile.RankFile) -> bool:
    return (
        dict(a.arguments) == dict(b.arguments)
        and {v: dict(t) for v, t in a.chunks.items()} == {v: dict(t) for v, t in b.chunks.items()}
        and (a.path, a.version, a.iteration, a.beside) == (b.path, b.version, b.iteration, b.beside)
    )


def test_of_many_ranks_few_are_unpickled(tmp_path: Path, opened: list[Path]) -> None:
    reader = RankReader()
    for rank in range(40):
        path = save(tmp_path / f"{rank}" / "m.pt", rank, seed=rank)
        assert same(reader.read(path), read_rank(path))
    assert len(opened) == 2


@pytest.mark.parametrize(
    "changed", [{"hidden_size_": 5}, {"name": "x"}, {"ratio": 0.5}, {"flag": True}, {"big": 300}]
)
def test_other_arguments_are_read(tmp_path: Path, changed: dict[str, Any]) -> None:
    reader = RankReader()
    other = {k: {"x": "y", 0.5: 0.25, True: False, 5: 6, 300: 301}[v] for k, v in changed.items()}
    for i, values in enumerate((changed, other, changed, other)):
        path = save(tmp_path / f"{i}" / "m.pt", i, **values)
        assert same(reader.read(path), read_rank(path))


def test_a_byte_that_differs_anywhere_but_in_the_data_is_not_passed_over(tmp_path: Path) -> None:
    """Of a copy with one byte changed, reading says what it says of that file alone, or refuses both.

    A damaged header of one entry, which repeats the directory, may be passed over: the tensors still lie
    where they did.
    """
    one, two = save(tmp_path / "0" / "m.pt", 0), save(tmp_path / "1" / "m.pt", 1)
    whole = two.read_bytes()
    data = {i for t in read_rank(two).chunks[0].values() for i in range(t.storage[0], sum(t.storage))}
    truth = read_rank(two)
    reader = RankReader()
    reader.read(one)
    reader.read(two)
    (tmp_path / "2").mkdir()
    path = tmp_path / "2" / "m.pt"
    chunks = {0: {n: replace(t, path=str(path)) for n, t in truth.chunks[0].items()}}
    moved = replace(truth, path=path, chunks=chunks)
    for at in (i for i in range(0, len(whole), 3) if i not in data):
        a, b = outcomes(reader, path, whole, at)
        if isinstance(a, rankfile.RankFile) and not isinstance(b, rankfile.RankFile):
            assert inside_header(whole, at), at
            assert same(a, moved), at
        else:
            assert a is b or same(a, b), at


def outcomes(reader: RankReader, path: Path, whole: bytes, at: int) -> list[Any]:
    """Damage byte ``at`` of a file; return what a reader that knows others makes of it, and a fresh one."""
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
    found: list[Any] = []
    for read in (reader.read, read_rank):
        try:
            found.append(read(path))
        except Exception as error:
            found.append(type(error))
    return found


def inside_header(whole: bytes, at: int) -> bool:
    """Whether a byte is of what stands before an entry's data in the archive."""
    begin = whole.rfind(b"PK\3\4", 0, at + 4)
    names, extra = struct.unpack_from("<2H", whole, begin + 26)
    return begin >= 0 and at < begin + 30 + names + extra


def save_state(path: Path, rank: int, torch_before: bool = False) -> Path:
    """Save a rank as Megatron does, with a random state of its own, also as older torch lays files out."""
    state = [{"random_rng_state": random.Random(rank).getstate(), "np_rng_state": ("MT19937", 7)}]
    args = argparse.Namespace(hidden_size=4, rank=rank)
    model = {"a.weight": torch.full((3, 4), float(rank)), "b.weight": torch.ones(5)}
    path.parent.mkdir(exist_ok=True)
    torch.save({"args": args, "checkpoint_version": 3.0, "model": model, "rng_state": state}, path)
    if torch_before:
        without_marks(path)
    return path


def without_marks(path: Path) -> None:
    """Take out the entries that newer torch puts between the pickle and the byte order."""
    with zipfile.ZipFile(path) as archive:
        names = [n.partition("/")[2] for n in archive.namelist()]
        kept = {n: archive.read(f"m/{n}") for n in names if not n.startswith(".") and n != "version"}
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in kept.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()


@pytest.mark.parametrize("torch_before", [False, True])
def test_ranks_that_differ_in_their_random_states_are_alike(
    tmp_path: Path, opened: list[Path], torch_before: bool
) -> None:
    reader = RankReader()
    lengths = set()
    for rank in range(60):
        path = save_state(tmp_path / f"{rank}" / "m.pt", rank, torch_before)
        with zipfile.ZipFile(path) as archive:
            lengths.add(archive.getinfo("m/data.pkl").file_size)
        assert same(reader.read(path), read_rank(path))
    assert len(lengths) > 10
    assert len(opened) == 2


@pytest.mark.parametrize("spelled", ["memo", "whole", "unread", "text"])
def test_numbers_that_are_used_again_are_not_skipped(spelled: str) -> None:
    """A random state that another object shares, or that only looks like one inside a text, counts."""
    state = random.Random(1).getstate()
    plain = pickle.dumps([{"random_rng_state": state}], 2)
    begin = plain.index(b"K\x03(") + 3
    end = plain.rindex(b"t", begin, plain.index(b"N\x87", begin + 5 * 600))
    assert inert.used_once(plain, begin, end)
    if spelled in ("memo", "whole"):
        shared = pickle.dumps([{"random_rng_state": state}, state[1] if spelled == "memo" else state], 2)
        assert not inert.used_once(shared, begin, end)
    elif spelled == "unread":
        assert not inert.used_once(plain[:-1] + b"R.", begin, end)
    else:
        out = io.BytesIO()
        pickle.dump([plain], out, 2)
        hidden = out.getvalue()
        ahead = hidden.index(b"random_rng_state") - plain.index(b"random_rng_state")
        assert not inert.used_once(hidden, begin + ahead, end + ahead)


def test_a_byte_that_differs_beside_a_random_state_is_not_passed_over(tmp_path: Path) -> None:
    reader = RankReader()
    files = [save_state(tmp_path / f"{rank}" / "m.pt", rank) for rank in range(6)]
    for path in files:
        reader.read(path)
    whole = files[-1].read_bytes()
    end = whole.index(b"archive/") if b"archive/" in whole else 4096
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "m.pt"
    directory = whole.index(b"PK\1\2")
    for at in (*range(0, end, 7), *range(directory, len(whole))):
        a, b = outcomes(reader, path, whole, at)
        if not inside_header(whole, at):
            assert a is b or same(a, b), at
