"""Say on what machine the numbers were taken."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

__all__ = ["describe", "file_system"]

_PACKAGES = ("numpy", "safetensors", "torch")
_DEEPSPEED = (
    "import platform; from importlib.metadata import version as v; "
    "print(f\"deepspeed {v('deepspeed')}, torch {v('torch')}, Python {platform.python_version()}\")"
)


def describe(work: Path, deepspeed_python: str | None) -> dict[str, str]:
    """Return facts by name, in the order they are shown.

    Args:
        work: The folder that is read from and written to.
        deepspeed_python: The interpreter DeepSpeed's tool runs with.
    """
    python = platform.python_version()
    facts = {
        "date": date.today().isoformat(),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "file system": file_system(work),
        "system": f"{platform.system()} {platform.release()}",
        "ckptconv": _asked(sys.executable, "import ckptconv; print(ckptconv.__version__)"),
        "versions": ", ".join([f"Python {python}", *(f"{p} {version(p)}" for p in _PACKAGES)]),
    }
    if deepspeed_python:
        facts["DeepSpeed's tool"] = _asked(deepspeed_python, _DEEPSPEED)
    return facts


def file_system(path: Path) -> str:
    """Return the type of the file system ``path`` lies on."""
    real, best = path.resolve(), ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if (real == Path(mount) or Path(mount) in real.parents) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _asked(python: str, code: str) -> str:
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(
        [python, "-c", code], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()
