"""Name the programs that are compared, each as the command lines a user would type."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Contender", "convert_file", "deepspeed_tool", "for_checkpoint", "for_file", "start_up"]

HERE = Path(__file__).resolve().parent
CKPTCONV = (sys.executable, "-m", "ckptconv")


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to do the work.

    Attributes:
        name: What the tables call it.
        steps: Commands, run one after the other; all count.
        out: What it writes; removed before every run.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    out: Path


def deepspeed_tool(python: str, checkpoint: Path) -> tuple[str, ...] | None:
    """Return how to start DeepSpeed's own tool; None where ``python`` has no deepspeed."""
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('deepspeed') is None)"
    try:
        if subprocess.run([python, "-c", find], capture_output=True, check=False).returncode:
            return None
    except OSError:
        return None
    copy = checkpoint / "zero_to_fp32.py"  # save_checkpoint puts it there
    return (python, str(copy)) if copy.is_file() else (python, "-m", "deepspeed.utils.zero_to_fp32")


def for_checkpoint(
    checkpoint: Path, config: Path | None, work: Path, tool: Sequence[str] | None, reflinks: bool
) -> list[Contender]:
    """Return the ways from a ZeRO checkpoint to Hugging Face weights, and ``cp`` of the result."""
    assets = ("--config", str(config)) if config else ("--no-assets",)
    base = (*CKPTCONV, "deepspeed-to-hf", str(checkpoint))
    ours, rounded, copy, theirs = (work / n for n in ("fp32", "bf16", "copy.safetensors", "zero_to_fp32"))
    copying = ("cp", *(("--reflink=never",) if reflinks else ()), str(ours / "model.safetensors"), str(copy))
    one = ("--max-shard-size", "1TB", *assets)
    found = [
        Contender("ckptconv", ((*base, str(ours), *one),), ours),
        Contender(
            "ckptconv --dtype bfloat16", ((*base, str(rounded), "--dtype", "bfloat16", *one),), rounded
        ),
        Contender("cp", (copying,), copy),
        Contender("cp + sync", (copying, ("sync", str(copy))), copy),
    ]
    if tool:
        command = (*tool, str(checkpoint), str(theirs), "--safe_serialization", "--max_shard_size", "1TB")
        found.append(Contender("zero_to_fp32.py", (command,), theirs))
    return found


def convert_file(checkpoint: Path, out: Path) -> tuple[str, ...]:
    """Return the command that makes the plain state dict the next comparison starts from."""
    flags = ("--format", "bin", "--max-shard-size", "1TB", "--no-assets", "--overwrite")
    return (*CKPTCONV, "deepspeed-to-hf", str(checkpoint), str(out), *flags)


def for_file(file: Path, work: Path) -> list[Contender]:
    """Return the ways from a ``torch.save`` file to safetensors."""
    ours, theirs = work / "from-bin", work / "save_file"
    flags = ("--to", "hf", "--max-shard-size", "1TB", "--no-assets")
    script = (sys.executable, str(HERE / "torch_save_file.py"), str(file), str(theirs))
    return [
        Contender("ckptconv convert", ((*CKPTCONV, "convert", str(file), str(ours), *flags),), ours),
        Contender("torch.load + save_file", (script,), theirs),
    ]


def start_up(checkpoint: Path, work: Path) -> list[Contender]:
    """Return the commands that should answer at once."""
    nothing = work / "nothing"
    return [
        Contender("ckptconv --help", ((*CKPTCONV, "--help"),), nothing),
        Contender("ckptconv inspect", ((*CKPTCONV, "inspect", str(checkpoint)),), nothing),
    ]
