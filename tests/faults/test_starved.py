"""A conversion that runs out of disk or of file handles says so, and resumes to the same bytes."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.killing import takers
from faults.kinds import KINDS, Kind, Source
from running import contents, start, succeeds

CHOSEN = [k for k in KINDS if k.name in ("megatron-split", "to dcp", "hf-to-mindformers ckpt", "LoRA merge")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("sources") / "base", 32, 2)


def _limited(what: int, amount: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (amount, amount))


@pytest.mark.parametrize("kind", CHOSEN, ids=lambda k: k.name)
def test_a_limit_on_the_size_of_files(kind: Kind, source: Source, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    succeeds(*source.words(kind, whole), "--quiet")
    largest = max(map(len, contents(whole).values()))
    words = source.words(kind, out)
    process = start(*words, "--quiet", preexec_fn=_limited(resource.RLIMIT_FSIZE, largest - 1000))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "File too large" in err.decode() and "--resume" in err.decode()
    left = contents(out) if out.exists() else {}
    assert not out.exists() or not takers(out, {n: b for n, b in left.items() if not n.endswith(".part")})
    succeeds(*words, "--resume", "--quiet")
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("kind", CHOSEN, ids=lambda k: k.name)
def test_few_file_handles(kind: Kind, source: Source, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    succeeds(*source.words(kind, whole), "--quiet")
    words = source.words(kind, out)
    process = start(*words, "--quiet", preexec_fn=_limited(resource.RLIMIT_NOFILE, 24))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert contents(out) == contents(whole)
