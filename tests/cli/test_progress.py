"""A run says how far it is: a bar on a terminal, a line now and then in a log, and each warning once."""

from __future__ import annotations

import io
import os
import pty
import re
import select
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from ckptconv.cli import progress
from ckptconv.cli.console import forget_notes, new_table, notes
from ckptconv.engine.events import Progress, Started
from running import ckptconv, start, succeeds

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
    assert 5 <= len(lines) <= 25
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
    assert progress.speed(10**6, 0.01) == "" and progress.speed(10**6, 2) == "500 KB/s"


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
