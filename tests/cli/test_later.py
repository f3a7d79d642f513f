"""What asks numpy nothing does not wait for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

_RUN = """
import sys
from ckptconv.cli import main
try:
    main()
finally:
    import numpy
    loaded = "numpy._core" in sys.modules
    print("numpy is", "loaded" if loaded else "awaited", numpy.arange(3).tolist(), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command", ["inspect MODEL", "convert --help", "ls MODEL", "convert MODEL OUT --to hf --no-assets"]
)
def test_numpy_is_not_loaded(command: str, tmp_path: Path) -> None:
    save_file({"model.norm.weight": np.ones(4, np.float32)}, tmp_path / "model.safetensors", {"format": "pt"})
    words = command.replace("MODEL", str(tmp_path)).replace("OUT", f"{tmp_path}-out").split()
    done = subprocess.run([sys.executable, "-c", _RUN, *words], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("numpy is awaited [0, 1, 2]\n"), done.stderr


def test_who_comes_first_loads_it_for_all() -> None:
    code = """
from ckptconv.cli.later import load_later
load_later("numpy")
import threading
import numpy as np
made = []
threads = [threading.Thread(target=lambda: made.append(np.zeros(2).sum())) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided
assert made == [0.0] * 8 and np.float32(1) == 1 and not hasattr(np, "nothing") and npt.NDArray is not None
load_later("numpy")
load_later("no_such_module")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
