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
    from ckptconv.api.convert import convert, plan
    from ckptconv.api.diff import diff
    from ckptconv.api.explain import explain
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
    "Model",
    "Pushed",
    "Report",
    "Saves",
    "TensorInfo",
    "__version__",
    "average",
    "convert",
    "diff",
    "explain",
    "ls",
    "open",
    "plan",
    "push",
    "verify_roundtrip",
]

_HOMES = {
    "Pushed": "ckptconv.api.push",
    "push": "ckptconv.api.push",
    "average": "ckptconv.api.average",
    "ConvertOptions": "ckptconv.planning.request",
    "Model": "ckptconv.api.model",
    "TensorInfo": "ckptconv.api.model",
    "open": "ckptconv.api.model",
    "CkptconvError": "ckptconv.errors",
    "Report": "ckptconv.engine.options",
    "diff": "ckptconv.api.diff",
    "Saves": "ckptconv.api.ls",
    "explain": "ckptconv.api.explain",
    "ls": "ckptconv.api.ls",
    "verify_roundtrip": "ckptconv.api.verify",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``import ckptconv`` costs nothing."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(_HOMES.get(name, "ckptconv.api.convert")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
