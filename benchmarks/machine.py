"""Say on what machine the numbers were taken."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

__all__ = ["describe", "file_system", "machine_of"]

_PACKAGES = ("numpy", "safetensors", "torch")
_TOOLS = {
    "deepspeed-python": ("DeepSpeed's tool", "deepspeed", "torch"),
    "mindspore-python": ("MindSpore", "mindspore", "numpy"),
    "peers-python": ("peers", "megatron-bridge", "megatron-core", "verl", "transformers", "torch"),
}
_VERSIONS = (
    "import platform, sys; from importlib.metadata import version as v; "
    "print(', '.join([*(f'{p} {v(p)}' for p in sys.argv[1:]), f'Python {platform.python_version()}']))"
)


def describe(work: Path, pythons: Mapping[str, str]) -> dict[str, str]:
    """Return facts by name, in the order they are shown.

    Args:
        work: The folder that is read from and written to.
        pythons: Interpreters of the other tools.
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
    for interpreter, (label, *packages) in _TOOLS.items():
        facts[label] = _asked(pythons[interpreter], _VERSIONS, *packages) or "not installed"
    return facts


def machine_of(facts: Mapping[str, str]) -> str:
    """Return what two runs must share to be of the same machine."""
    return f"{facts['processor']}, {facts['system']}"


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


def _asked(python: str, code: str, *arguments: str) -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            [python, "-c", code, *arguments], cwd=root, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()
