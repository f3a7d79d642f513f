#!/usr/bin/env python
"""Draw docs/images/terminal.svg: what a terminal shows of the demo run, really run.

python docs/images/terminal.py
"""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

_ROOT = Path(__file__).resolve().parents[2]
_RUN = "runs/checkpoint-2"
_COMMANDS = (("inspect", _RUN), ("deepspeed-to-hf", _RUN, "model", "--dry-run"))
_WIDTH = 88


def main() -> None:
    """Run the commands in a terminal of their own and write the picture."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, _RUN)
        link.parent.mkdir()
        link.symlink_to(_ROOT / "fixtures" / "demo-run" / "checkpoint-2", target_is_directory=True)
        for command in _COMMANDS:
            console.print(Text.assemble(("$ ", "green"), " ".join(("ckptconv", *command))))
            for line in _screen(command, Path(folder)).splitlines():
                text = Text.from_ansi(line)
                text.rstrip()
                console.print(text)
            console.print()
    target = Path(__file__).with_suffix(".svg")
    target.write_text(console.export_svg(title="ckptconv", unique_id="ckptconv"), encoding="utf-8")


def _screen(arguments: tuple[str, ...], folder: Path) -> str:
    """Return what a command prints to a terminal, colours included."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": str(_WIDTH), "TERM": "xterm-256color", "PYTHONPATH": str(_ROOT)}
    command = (sys.executable, "-m", "ckptconv", *arguments)
    with subprocess.Popen(command, cwd=folder, env=env, stdout=theirs, stderr=theirs):
        os.close(theirs)
        chunks = []
        try:
            while chunk := os.read(ours, 1 << 16):
                chunks.append(chunk)
        except OSError:  # Linux ends a terminal with an error
            pass
    os.close(ours)
    return b"".join(chunks).decode()


if __name__ == "__main__":
    main()
