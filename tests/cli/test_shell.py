"""What the shell and a scheduler do to a run ends in one error line at most, and the right exit code."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckptconv.engine.journal import JOURNAL
from running import DEMO, ROOT, ckptconv, command, contents, fails, start

_FULL = Path("/dev/full")


def _shell(words: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command line with redirections: ``{}`` is the program and its arguments."""
    quoted = " ".join(f"'{a}'" for a in command(*arguments))
    text = words.replace("{}", quoted)
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("words", ["{} >/dev/full", "{} >&-"])
def test_a_stdout_that_takes_nothing(words: str, flags: tuple[str, ...]) -> None:
    if not _FULL.exists():
        pytest.skip("needs /dev/full")
    ran = _shell(words, "inspect", DEMO, *flags)
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert ran.returncode == 1 and len(errors) == 1 and "stdout" in errors[0], ran.stderr
    assert "Traceback" not in ran.stderr and "Exception ignored" not in ran.stderr


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_a_reader_that_has_seen_enough(flags: tuple[str, ...]) -> None:
    """``ckptconv inspect RUN | head`` is no failure worth a word."""
    ran = _shell("set -o pipefail; {} | true", "inspect", DEMO, *flags)
    assert ran.returncode == 141 and ran.stderr == ""


@pytest.mark.parametrize("words", ["{} 2>/dev/full", "{} 2>&-"])
def test_a_stderr_that_takes_nothing_ends_no_run(words: str) -> None:
    assert _shell(words, "inspect", DEMO).returncode == 0
    assert _shell(words, "inspect", DEMO / "nowhere").returncode == 1


def test_a_conversion_without_any_stream_is_whole(tmp_path: Path) -> None:
    """A file opened under the number of stderr would take what any library prints."""
    assert _shell("{}", "deepspeed-to-hf", DEMO, tmp_path / "usual", "-q").returncode == 0
    words = "{} <&- >&- 2>&-"
    assert _shell(words, "deepspeed-to-hf", DEMO, tmp_path / "out", "-q").returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")


def test_a_conversion_whose_result_cannot_be_printed_is_done(tmp_path: Path) -> None:
    ran = _shell("{} >&-", "deepspeed-to-hf", DEMO, tmp_path / "out", "--verify")
    assert ran.returncode == 1 and "only what was to be printed is lost" in ran.stderr
    there = {p.name for p in (tmp_path / "out").iterdir()}
    assert "ckptconv-verify.json" in there and JOURNAL not in there


def test_an_error_is_one_although_stdout_is_full() -> None:
    ran = _shell("{} >/dev/full", "inspect", DEMO / "nowhere", "--json")
    assert ran.returncode == 1 and ran.stderr.count("error:") == 1


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
@pytest.mark.parametrize("wait", [0.0, 0.04, 0.1, 0.2, 0.4])
def test_a_signal_at_any_moment(tmp_path: Path, number: signal.Signals, code: int, wait: float) -> None:
    """While modules are imported, while the run is planned, while it writes: the end is the same."""
    words = [sys.executable, "-c", _STARTED, "deepspeed-to-hf", str(DEMO), str(tmp_path / "out"), "--verify"]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(wait)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (code, 0), said
    assert "Traceback" not in said and "internal error" not in said
    if process.returncode:
        assert said.count("error:") == 1 and "interrupted" in said, said


# The handlers are there; what comes next is imports.
_STARTED = """
import sys
from ckptconv import cli
from ckptconv.cli import signals
take = signals.Heard.hold
def hold(self):
    print("started", flush=True)
    return take(self)
signals.Heard.hold = hold
cli.main()
"""


def test_sighup_under_nohup_ends_nothing(tmp_path: Path) -> None:
    process = start(
        "deepspeed-to-hf", DEMO, tmp_path / "out", "-q",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    time.sleep(0.2)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_report_replaces_reports_alone(tmp_path: Path) -> None:
    page, notes, link = tmp_path / "page.html", tmp_path / "notes.html", tmp_path / "link.html"
    notes.write_text("mine")
    link.symlink_to(notes)
    for given, naming in ((notes, "no report"), (link, "no report"), (tmp_path, "folder"), (".", "folder")):
        fails(1, "inspect", DEMO, "--report", given, naming=(naming,))
    fails(1, "inspect", DEMO, "--report", DEMO / "latest", naming=("latest",))
    assert notes.read_text() == "mine"
    for _ in range(2):
        assert _shell("{}", "inspect", DEMO, "--report", page).returncode == 0


@pytest.mark.parametrize("words", [("deepspeed-to-hf", DEMO, "out"), ("diff", DEMO, DEMO), ("check", DEMO)])
def test_workers_are_bounded(words: tuple[object, ...]) -> None:
    fails(2 if words[0] != "check" else 1, *words, "--workers", 10**6)


def test_what_may_not_be_read_is_named_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")
    path.chmod(0)

    def without_rights_of_root() -> None:
        prctl, drop, dac_override, dac_read_search = ctypes.CDLL(None).prctl, 24, 1, 2
        assert os.geteuid() or not any(prctl(drop, c, 0, 0, 0) for c in (dac_override, dac_read_search))

    process = start("inspect", path, preexec_fn=without_rights_of_root)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1 and "Permission denied" in said and "model.pt" in said
    assert "chmod" in said


def test_rules_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_bytes(b"a = \xff\n")
    fails(1, "deepspeed-to-hf", DEMO, tmp_path / "out", "--rename", rules, naming=("rules.txt", "UTF-8"))


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    """Hide transformers from a process, as if it were not installed."""
    hidden = "import sys; sys.modules['transformers'] = None; from ckptconv.cli import main; main()"
    words = [sys.executable, "-c", hidden]
    assert _shell("{}", "deepspeed-to-hf", DEMO, tmp_path / "out", "-q").returncode == 0
    ran = subprocess.run(
        [*words, "verify-roundtrip", str(DEMO), str(tmp_path / "out"), "--logits"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ran.returncode == 1 and "ckptconv[transformers]" in ran.stderr, ran.stderr
    assert "internal error" not in ran.stderr


@pytest.mark.parametrize("pattern", ["[/x]", "[bold]*", "*\x1b[31m*", "*\nerror: forged*"])
def test_a_pattern_is_printed_as_it_is(pattern: str) -> None:
    result = ckptconv("inspect", DEMO, "--tensors", pattern)
    assert result.code in (0, 2) and "internal error" not in result.err
    assert "\x1b" not in result.out + result.err and "\nerror: forged" not in result.out + result.err


def test_json_is_whole_however_long_a_line_is(tmp_path: Path) -> None:
    url = f"s3://key:hunter22@bucket/{'x' * 12_000}"
    (tmp_path / "out").mkdir()
    result = ckptconv("convert", DEMO, tmp_path / "out", "--to", "hf", "--config", url, "--json")
    error = json.loads(result.out)["error"]
    assert result.code == error["exit_code"] != 0 and "hunter22" not in result.out + result.err
    save_file({"n" * 15_000 + ":/": torch.ones(1)}, tmp_path / "a.safetensors")
    named = json.loads(ckptconv("inspect", tmp_path / "a.safetensors", "--json").out)["tensors"]
    assert [len(t["name"]) for t in named] == [15_002]
