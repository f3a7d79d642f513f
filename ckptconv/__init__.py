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

if TYPE_CHECKING:
    from ckptconv.api import Model, TensorInfo, convert, open, plan  # noqa: A004
    from ckptconv.differences import diff
    from ckptconv.engine.options import Report
    from ckptconv.errors import CkptconvError
    from ckptconv.explaining import explain
    from ckptconv.options import ConvertOptions
    from ckptconv.roundtrip import verify_roundtrip

__version__ = "0.1.0"
__all__ = [
    "CkptconvError",
    "ConvertOptions",
    "Model",
    "Report",
    "TensorInfo",
    "__version__",
    "convert",
    "diff",
    "explain",
    "open",
    "plan",
    "verify_roundtrip",
]

_HOMES = {
    "ConvertOptions": "ckptconv.options",
    "CkptconvError": "ckptconv.errors",
    "Report": "ckptconv.engine.options",
    "diff": "ckptconv.differences",
    "explain": "ckptconv.explaining",
    "verify_roundtrip": "ckptconv.roundtrip",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``import ckptconv`` costs nothing."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(_HOMES.get(name, "ckptconv.api")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
