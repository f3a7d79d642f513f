"""A run says how far it is: a bar on a terminal, a line now and then in a log, and each warning once."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from ckptconv.cli import progress
from ckptconv.cli.console import forget_notes, new_table, notes
from ckptconv.engine.events import Progress, Started
from ckptconv.numbers.rates import speed_text
from running import DEMO, ROOT, ckptconv, command, start, succeeds

FLAGS = ("--to", "hf", "--no-assets", "--max-memory", "1MiB", "--workers", "1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    tensors = {f"w{n}": torch.ones(1 << 20) for n in range(8)}
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    return tmp_path / "source"


def test_a_log_gets_lines(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = succeeds("convert", source, tmp_path / "quick", *FLAGS)
    assert "%" not in quick.err  # what is done at once needs no lines
    monkeypatch.setattr(progress, "_OFTEN", 0)
    shown = succeeds("convert", source, tmp_path / "out", *FLAGS, "--verify").err
    lines = [line for line in shown.splitlines() if "%" in line]
    assert 5 <= len(lines) <= 200
    assert all(re.match(r"(writing|comparing): \d+%, .* of 33.6 MB, .*left$", line) for line in lines), lines
    assert ckptconv("convert", source, tmp_path / "q", *FLAGS, "--quiet").err == ""


def test_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("ckptconv.cli.progress.time.perf_counter", lambda: now[0])
    with progress.follow("step-5: writing", quiet=False) as follower:
        follower.listen(Started(1000, 0))
        for _ in range(100):
            now[0] += 1
            follower.listen(Progress(1))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 10
    assert shown[0] == "step-5: writing: 1%, 10 B of 1 KB, 1 B/s, 16 min left"


def test_a_line_for_each_per_cent_but_not_every_moment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("ckptconv.cli.progress.time.perf_counter", lambda: now[0])
    for pause, lines in ((2.0, 99), (0.1, 9), (0.01, 0)):  # seconds a per cent
        with progress.follow("writing", quiet=False) as follower:
            follower.listen(Started(10**9, 0))
            for _ in range(1000):
                now[0] += pause / 10
                follower.listen(Progress(10**6))
        shown = capsys.readouterr().err.splitlines()
        assert abs(len(shown) - lines) <= 1, (pause, len(shown))
        percents = [int(line.split()[1].rstrip("%,")) for line in shown]
        assert percents == sorted(set(percents))


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    """Return a run whose config ties a head that was trained apart: a conversion warns of it."""
    run = tmp_path / "run"
    shutil.copytree(DEMO, run)
    for path in (run, *run.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return run


def _lines(*arguments: object) -> list[str]:
    """Return what stdout and stderr get together, as a terminal or a job's log shows it."""
    shown = subprocess.run(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    return shown.stdout.decode().splitlines()


def test_warnings_stand_beside_the_outcome_once(untied: Path, tmp_path: Path) -> None:
    plain = _lines("deepspeed-to-hf", untied, tmp_path / "out")
    assert plain[-1].startswith("done ") and plain[-2].startswith("warning: ")
    assert sum("warning: " in line for line in plain) == 1
    verified = _lines("convert", untied, tmp_path / "out2", "--to", "hf", "--verify")
    assert verified[-1].startswith("verified:") and verified[-2] == plain[-2]
    assert sum("warning: " in line for line in verified) == 1
    assert _lines("deepspeed-to-hf", untied, tmp_path / "out3", "--quiet", "--verify") == []
    assert all(
        line[0] == " " or line in "{}"
        for line in _lines("deepspeed-to-hf", untied, tmp_path / "out4", "--json")
    )
    each = _lines("convert", untied.parent, tmp_path / "out5", "--to", "hf", "--steps", "all")
    assert [line.split(":")[0].split()[0] for line in each][-2:] == ["warning", "done"]


def test_what_is_found_on_the_way_stands_there_too(untied: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".ckptconv-journal").write_text('{"plan": "x", "overwrite": false}\n')
    shown = _lines("deepspeed-to-hf", untied, out, "--resume")
    assert [line.split()[0] for line in shown[-3:]] == ["warning:", "warning:", "done"]
    assert "other flags or another source" in shown[-2]


def test_warnings_follow_the_error_they_belong_to(untied: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.safetensors").write_bytes(b"x")
    shown = _lines("deepspeed-to-hf", untied, tmp_path / "out")
    assert shown[0].startswith("error: ") and shown[-1].startswith("warning: "), shown
    assert not any(line.startswith("info") for line in shown)


def test_a_terminal_gets_a_bar(source: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(
        "convert", source, tmp_path / "out", *FLAGS, stderr=theirs, env={**os.environ, "COLUMNS": "100"}
    )
    os.close(theirs)
    shown = b""
    while True:
        ready, _, _ = select.select([ours], [], [], 60)
        try:
            data = os.read(ours, 65536) if ready else b""
        except OSError:
            data = b""
        if not data:
            break
        shown += data
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0 and b"writing" in shown and b"%" in shown and b"done" in out


def test_no_speed_of_nothing() -> None:
    assert speed_text(10**6, 0.01) == "" and speed_text(10**6, 2) == "500 KB/s"


def test_a_note_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    forget_notes()
    for _ in range(2):
        notes((("warning", "hot"), ("warning", "hot"), ("info", "hot")))
    assert capsys.readouterr().err.splitlines() == ["warning: hot", "info: hot"]
    forget_notes()
    notes((("warning", "hot"),))
    assert capsys.readouterr().err == "warning: hot\n"


def test_tables_in_pipes_are_a_line_a_row(tmp_path: Path) -> None:
    name = "model." + "a_very_long_name." * 20 + "weight"
    save_file({name: torch.ones(2, 3)}, tmp_path / "model.safetensors")
    shown = succeeds("inspect", tmp_path / "model.safetensors", "--tensors", "*").out.splitlines()
    assert any(name in line and "2x3" in line and "float32" in line for line in shown)


def test_names_are_whole_on_a_terminal_where_they_fit() -> None:
    shown = io.StringIO()
    table = new_table("tensor", "relative", "why", right=("relative",))
    name = "model.layers.1.self_attn.o_proj.weight"
    for _ in range(3):
        table.add_row(name, "1.56e-03", "a reason that is long enough to be folded in its own column")
    Console(file=shown, width=80).print(table)
    lines = shown.getvalue().splitlines()
    assert sum(name in line for line in lines) == 3 and max(map(len, lines)) <= 80
    shown = io.StringIO()
    Console(file=shown, width=40).print(table)  # too narrow: nothing is lost
    assert "1.56e-03" in shown.getvalue() and "model.layers" in shown.getvalue()


def test_names_that_do_not_fit_are_folded_after_their_dots() -> None:
    heads = ("tensor", "relative", "largest", "mean", "differ", "at")
    table = new_table(*heads, right=heads[1:5])
    table.add_row("model.layers.0.post_attention_layernorm.weight", *("1.89e-03",) * 3, "100%", "[21, 3210]")
    table.add_row("x" * 60, *("1.89e-03",) * 3, "100%", "[21, 3210]")
    shown = io.StringIO()
    Console(file=shown, width=80).print(table)
    lines = [line.split()[0] for line in shown.getvalue().splitlines()[1:]]
    assert lines[:2] == ["model.layers.0.", "post_attention_layernorm."]
    assert lines[2] == "weight" and "".join(lines[3:]) == "x" * 60  # nothing is lost where there is no dot
