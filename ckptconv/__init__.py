"""Convert model-training checkpoints to Hugging Face models and back, bit for bit.

import ckptconv

run = ckptconv.open("run/")                    # any checkpoint; metadata only
run.tensors["model.norm.weight"]               # shape, dtype, files
model = run.to("hf", dtype="bfloat16")         # lazy
model.read("model.norm.weight")                # one tensor, now, as a numpy array
ckptconv.convert("run/", "out/", to="hf", dtype="bfloat16")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptconv.version import __version__

if TYPE_CHECKING:
    from ckptconv.api.average import average
    from ckptconv.api.check import check
    from ckptconv.api.convert import convert, plan
    from ckptconv.api.diff import diff
    from ckptconv.api.explain import explain
    from ckptconv.api.inspect import Inspection, inspect
    from ckptconv.api.ls import Saves, ls
    from ckptconv.api.model import Model, TensorInfo, open  # noqa: A004
    from ckptconv.api.push import Pushed, push
    from ckptconv.api.verify import verify_roundtrip
    from ckptconv.engine.options import Report
    from ckptconv.errors import CkptconvError
    from ckptconv.planning.request import ConvertOptions

__all__ = [
    "CkptconvError",
    "ConvertOptions",
    "Inspection",
    "Model",
    "Pushed",
    "Report",
    "Saves",
    "TensorInfo",
    "__version__",
    "average",
    "check",
    "convert",
    "diff",
    "explain",
    "inspect",
    "ls",
    "open",
    "plan",
    "push",
    "verify_roundtrip",
]

_HOMES = {
    "CkptconvError": "errors",
    "ConvertOptions": "planning.request",
    "Inspection": "api.inspect",
    "Model": "api.model",
    "Pushed": "api.push",
    "Report": "engine.options",
    "Saves": "api.ls",
    "TensorInfo": "api.model",
    "average": "api.average",
    "check": "api.check",
    "convert": "api.convert",
    "diff": "api.diff",
    "explain": "api.explain",
    "inspect": "api.inspect",
    "ls": "api.ls",
    "open": "api.model",
    "plan": "api.convert",
    "push": "api.push",
    "verify_roundtrip": "api.verify",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``import ckptconv`` costs nothing.

    Functions speak of keywords in their errors, where the command line speaks of flags.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"ckptconv.{_HOMES[name]}"), name)
    if not isinstance(found, type):
        from ckptconv.api.words import pythonic

        found = pythonic(found)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return __all__
