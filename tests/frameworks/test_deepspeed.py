"""What DeepSpeed writes today converts to the weights it trained: every case is made anew, then converted.

``make test-frameworks`` installs DeepSpeed for it; a case takes ten seconds or more.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from golden import VARIANTS, Case, Variant, check

pytestmark = pytest.mark.frameworks

_FIXTURES = Path(__file__).parents[2] / "fixtures"
_COMMAND = Path(sys.executable).with_name("ckptconv")


def _load_cases() -> ModuleType:
    """Import the table by its path: with ``fixtures/`` on ``sys.path``, its data would pass for packages."""
    spec = importlib.util.spec_from_file_location("cases", _FIXTURES / "deepspeed_recipe" / "cases.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault("cases", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", _load_cases().CASES)
def test_fresh_checkpoint_converts_to_the_trained_weights(name: str, tmp_path: Path) -> None:
    _run(sys.executable, _FIXTURES / "make_deepspeed.py", tmp_path, name)
    case = Case.load(tmp_path / name)
    for source in case.sources:
        for variant in VARIANTS:
            out = tmp_path / "out" / source.name / variant.name
            flags = case.config_flags if variant is VARIANTS[0] else ("--no-assets",)
            _run(_COMMAND, "deepspeed-to-hf", source, out, "--quiet", *flags, *variant.flags)
            check(case, variant, out)
    gathered = case.path / "save_16bit" / "pytorch_model.bin"
    if gathered.exists():
        out = tmp_path / "out" / "save_16bit"
        _run(_COMMAND, "deepspeed-to-hf", gathered, out, "--no-assets", "--quiet")
        check(case, Variant("16bit", weights="module"), out)
