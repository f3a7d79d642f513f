"""A conversion that runs out of disk or of file handles says so, and resumes to the same bytes."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file as tensors

from faults.killing import final, takers, untimed
from faults.kinds import KINDS, Kind, Source
from running import contents, start, succeeds


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("sources") / "base", 32, 2)


def _limited(what: int, amount: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (amount, amount))


def _begin(kind: Kind, source: Source, out: Path) -> list[str]:
    """Fill the output with what the kind replaces; return the command line."""
    words = source.words(kind, out)
    if kind.old is not None:
        source.fill(kind, out)
    return [*words, "--quiet"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_a_limit_on_the_size_of_files(kind: Kind, source: Source, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    succeeds(*_begin(kind, source, whole))
    largest = max(map(len, contents(whole).values()))
    words = _begin(kind, source, out)
    before = contents(out) if out.exists() else {}
    process = start(*words, preexec_fn=_limited(resource.RLIMIT_FSIZE, largest - 1000))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "File too large" in err.decode()
    resumes = "--resume" in err.decode()  # not where an old model lies and nothing of the new is whole
    assert resumes or kind.old is not None
    if before:
        assert final(out) == before
    elif out.exists():
        assert not takers(out, final(out))
    succeeds(*((*(w for w in words if w != "--overwrite"), "--resume") if resumes else words))
    assert untimed(contents(out)) == untimed(contents(whole))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_few_file_handles(kind: Kind, source: Source, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    succeeds(*_begin(kind, source, whole))
    process = start(*_begin(kind, source, out), preexec_fn=_limited(resource.RLIMIT_NOFILE, 24))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert untimed(contents(out)) == untimed(contents(whole))


def test_many_ranks_and_few_file_handles(tmp_path: Path) -> None:
    """128 rank files, of which a process may open a fraction."""
    source = Source(tmp_path / "base", 32, 64)
    split = Kind("split", "model", ("megatron-split",), ("--tp", "2", "--pp", "64"))
    ranks, few, many = tmp_path / "ranks", tmp_path / "few", tmp_path / "many"
    limit = _limited(resource.RLIMIT_NOFILE, 40)
    for words in (
        source.words(split, ranks),
        ["megatron-merge", str(ranks), str(few), "--config", str(source.base / "model")],
    ):
        process = start(*words, "--quiet", preexec_fn=limit)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    assert len(list(ranks.rglob("*.pt"))) == 128
    succeeds("megatron-merge", ranks, many, "--config", source.base / "model", "--quiet")
    assert contents(few) == contents(many)
    merged, true = (tensors(f / "model.safetensors") for f in (few, source.base / "model"))
    assert merged.keys() == true.keys()
    assert all(np.array_equal(merged[n], true[n]) for n in true)
