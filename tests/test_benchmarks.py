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
    found = {
        **runpy.run_path(str(BENCHMARKS / "conversions.py")),
        **runpy.run_path(str(BENCHMARKS / "sources.py")),
    }
    return SimpleNamespace(**found)


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


def test_dcp_is_compared_by_its_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        state = {"x": torch.full((3, 4), value, dtype=torch.bfloat16), "step": 1}
        dcp.save(state, checkpoint_id=tmp_path / name, no_dist=True)
    assert _run("same_tensors.py", tmp_path / "a", tmp_path / "b").stdout == "1 tensors, 24 bytes: the same\n"
    assert "x differs" in _run("same_tensors.py", tmp_path / "a", tmp_path / "c").stderr


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_two_copies_copy_half_of_the_bytes_each(tmp_path, monkeypatch, parts):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import copies

    (tmp_path / "out" / "folder").mkdir(parents=True)
    data = {"a": b"abcdefg", "b": b"", "folder/c d": b"hijk"}
    for name, content in data.items():
        (tmp_path / "out" / name).write_bytes(content)
    subprocess.run(copies.command(tmp_path / "out", tmp_path / "copy", parts, sync=True), check=True)
    written = {p.name: p.read_bytes() for p in sorted((tmp_path / "copy").iterdir())}
    assert b"".join(written.values()) == b"abcdefghijk"
    halves = [b"".join(v for k, v in written.items() if k.startswith(f"{i}-")) for i in range(parts)]
    assert max(map(len, halves)) - min(map(len, halves)) <= 1


def test_a_copy_that_fails_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import copies

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"abc")
    command = copies.command(tmp_path / "out", tmp_path / "copy", 2, sync=False)
    (tmp_path / "out" / "a").unlink()
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from measure import Usage
    from results import Results
    from runner import BASELINE, ONE, ONE_DD, TWO, TWO_DD, Outcome

    def made(size, **seconds):
        names = {
            "two": TWO,
            "one": ONE,
            "base": BASELINE,
            "dd": ONE_DD,
            "dds": TWO_DD,
            "theirs": "zero_to_fp32.py",
        }
        usages = {names[k]: [Usage(v, v, int(v * 1e8), 0)] for k, v in seconds.items()}
        outcome = Outcome(bytes_out=8 * 10**9, runs={"warm": usages}, held=True)
        facts = {"date": "2026-01-01", "processor": "P", "system": "S"}
        return Results(size, facts, {"zero3": outcome})

    return made


def test_two_workers_are_judged_by_two_copies(results):
    import targets

    def disk(**seconds):
        return next(t for t in targets.judge(results(8.0, base=9, **seconds)) if t.aim == "disk")

    assert disk(two=2, one=3, dd=2, dds=1).met  # 1.5, whatever two copies do
    assert disk(two=2, one=2.4, dd=1.1, dds=1).met  # 1.2, and two copies 1.1
    assert not disk(two=2, one=2.4, dd=1.4, dds=1).met


@pytest.mark.parametrize("language", ["ENGLISH", "CHINESE"])
def test_the_page_shows_ours_the_copy_and_the_tool(results, language):
    import chinese
    import report
    import words

    spoken = getattr(words if language == "ENGLISH" else chinese, language)
    small = results(1.0, two=1, one=2, base=0.5, theirs=3)
    small.cases["zero3"].problems["zero_to_fp32.py"] = "exit code 1: no | memory"
    large = results(8.0, two=2, one=3, base=4, dd=2, dds=1, theirs=9)
    page = report.page([small, large], ["a.svg", "b.svg"], spoken)
    assert "| 8.00 | 2.00 | 4.00 | 0.50 |  | 200 | 2.00 |" in page
    assert "no \\| memory" in page and "| 9.0 : 2.0 | 4.5 | 900 : 200 |" in page
    assert "| 1.50 | 2.00 |" in page
    assert "`zero3` 2.00" in page


def test_held_memory_is_let_go_of_when_its_input_ends():
    command = [sys.executable, str(BENCHMARKS / "pages.py"), str(1 << 20)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"ready\n"
        assert holder.poll() is None
        holder.stdin.close()
        assert holder.wait(10) == 0
