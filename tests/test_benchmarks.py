"""The benchmarks' table and their check of results, without measuring anything."""

import runpy
import string
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def cases(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "cases.py")))


def _fields(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


def test_every_case_names_the_sources_it_uses(cases):
    for case in cases.CASES:
        commands = [case.command, case.same, *(step for tool in case.tools for step in tool.steps)]
        used = set().union(*map(_fields, commands)) - {"out", "theirs"}
        assert used <= set(case.needs) <= cases.SOURCES.keys(), case.name
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)


def test_every_source_names_the_sources_it_is_made_from(cases):
    for source in cases.SOURCES.values():
        used = set().union(*map(_fields, (*source.steps, *source.stand_in)))
        assert used - {"out", "size", "half", "layers"} == set(source.needs), source.name


def _run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_difference_of_one_bit_is_found(tmp_path):
    for name in ("a", "b"):
        assert _run("make_hf.py", tmp_path / name, "--gigabytes", 0.001).returncode == 0
    assert _run("same_tensors.py", tmp_path / "a", tmp_path / "b").returncode == 0
    file = tmp_path / "b" / "model.safetensors"
    with open(file, "r+b") as opened:
        opened.seek(-1, 2)
        last = opened.read(1)[0]
        opened.seek(-1, 2)
        opened.write(bytes([last ^ 1]))
    different = _run("same_tensors.py", tmp_path / "a", tmp_path / "b")
    assert different.returncode == 1
    assert "lm_head.weight differs" in different.stderr


def test_held_memory_is_let_go_of_when_its_input_ends():
    command = [sys.executable, str(BENCHMARKS / "pages.py"), str(1 << 20)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"ready\n"
        assert holder.poll() is None
        holder.stdin.close()
        assert holder.wait(10) == 0
