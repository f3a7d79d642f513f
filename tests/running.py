"""Run the command line as a user does, in this process or in one of its own, and look at what it left."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from ckptconv.cli import main
from loads import assert_loads, is_known

__all__ = [
    "CASES", "DEMO", "ROOT", "Result", "assert_equal", "case_run", "ckptconv", "command", "contents",
    "fails", "final_names", "loaded", "mounted", "start", "succeeds",
]  # fmt: skip

ROOT = Path(__file__).parent.parent
CASES = ROOT / "fixtures" / "deepspeed"
DEMO = ROOT / "fixtures" / "demo-run" / "checkpoint-2"

_FINAL = ("*.safetensors", "*.bin", "*.index.json", "config.json")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run of the command line printed, and its exit code."""

    code: int
    out: str
    err: str


def ckptconv(*arguments: object) -> Result:
    """Run the command line's entry point in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["ckptconv", *(str(a) for a in arguments)]
    with (
        patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as e:
            code = e.code
    assert isinstance(code, int)
    return Result(code, out.getvalue(), err.getvalue())


def succeeds(*arguments: object) -> Result:
    """Run the command line; it must exit with 0."""
    result = ckptconv(*arguments)
    assert result.code == 0, result.err
    if (out := _model_written(arguments)) is not None:
        assert_loads(out, beyond=("",) if "names beyond" in result.err else ())
    return result


_TO_HF = ("deepspeed-to-hf", "megatron-merge", "mindformers-to-hf", "convert")
# Flags with which no whole model of transformers is written.
_PARTIAL = (
    "--drop",
    "--keep",
    "--rename",
    "--no-assets",
    "--dry-run",
    "--format",
    "--quantize",
    "--lora",
    "--help",
)


def _model_written(arguments: tuple[object, ...]) -> Path | None:
    """Return the folder of a model that a command line wrote, where transformers is to load it whole."""
    words = [str(a) for a in arguments]
    if words[0] not in _TO_HF or len(words) < 3 or any(w.startswith(_PARTIAL) for w in words):
        return None
    if words[0] == "convert" and "hf" not in words:
        return None
    out = Path(words[2])
    return out if is_known(out) else None


@contextlib.contextmanager
def mounted(disk: Path, size: str) -> Iterator[Path]:
    """Make a file system of its own in a new folder; skip the test without the right to."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fails(code: int, *arguments: object, naming: tuple[str, ...] = (), out: Path | None = None) -> str:
    """Run the command line; it must fail with ``code``, say where and what to do, and leave no model.

    Args:
        code: The exit code.
        arguments: The command line.
        naming: What the message must name.
        out: The folder in which nothing may look whole.

    Returns:
        The message.
    """
    result = ckptconv(*arguments)
    assert result.code == code, f"exit code {result.code}, not {code}\n{result.out}{result.err}"
    for text in naming:
        assert text in result.err, f"{text!r} is not named in:\n{result.err}"
    assert "Traceback" not in result.err
    assert "internal error" not in result.err
    if code != 2:
        assert "error:" in result.err and "do:" in result.err, f"no next step in:\n{result.err}"
    if out is not None:
        assert final_names(out) == []
    return result.err


def command(*arguments: object) -> list[str]:
    """Return the words that start the command line in a process of its own."""
    return [sys.executable, "-m", "ckptconv", *(str(a) for a in arguments)]


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line in a process of its own, which Ctrl-C interrupts.

    A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
    """
    usual = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, preexec_fn=_heed_interrupts)
    return subprocess.Popen(command(*arguments), **{**usual, **options})


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def final_names(folder: Path) -> list[str]:
    """List what would let a folder look like a model."""
    if not folder.is_dir():
        return []
    return sorted({p.name for pattern in _FINAL for p in folder.glob(pattern)})


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of all weight files in a folder."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    for path in sorted(folder.glob("*.bin")):
        tensors.update(torch.load(path, weights_only=True))
    return tensors


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Assert that two state dicts are the same, bit for bit."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        bits = [t.contiguous().flatten().view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*bits), name


def case_run(name: str, target: Path) -> Path:
    """Copy a case's checkpoint, with the model's config beside ``latest``, to a folder that may be spoilt."""
    shutil.copytree(CASES / name / "ckpt", target)
    if (config := CASES / name / "config.json").exists():
        shutil.copyfile(config, target / "config.json")
    for path in target.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    return target
