#!/usr/bin/env python
"""Build what the pickles of a checkpoint say with Python's own unpickler and classes that do nothing.

    python benchmarks/by_hand/unpickle.py CHECKPOINT

What any Python program takes at least to know a checkpoint's tensors. It knows no bound: a pickle of a few
bytes can make it take all memory.
"""

from __future__ import annotations

import gc
import io
import pickle
import sys
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZipFile


class Inert:
    """Stand for an object of any class; its state becomes its attributes."""

    def __init__(self, *_: object) -> None:
        """Take what the class is called with."""


class Stateful(Inert):
    """Stand for an object whose state is no dict."""

    def __setstate__(self, state: object) -> None:
        self.state = state


_STATEFUL = {"TensorProperties", "_reconstruct", "dtype"}  # of torch, numpy, numpy
_KNOWN: dict[str, Any] = {"OrderedDict": dict, "Size": tuple}


class Unpickler(pickle.Unpickler):
    """Build objects of inert classes."""

    made: ClassVar[dict[tuple[str, str], Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or a function."""
        found = self.made.get((module, name))
        if found is None:
            plain = type(name, (Stateful if name in _STATEFUL else Inert,), {})
            found = _KNOWN.get(name, (lambda *args: args) if name.startswith("_rebuild") else plain)
            self.made[module, name] = found
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Return what says where a storage lies."""
        return pid


def main(checkpoint: Path) -> None:
    """Read every pickle, one after the other."""
    gc.disable()
    found = 0
    for file in sorted(checkpoint.rglob("*.pt")):
        with ZipFile(file) as zipped:
            (name,) = (n for n in zipped.namelist() if n.endswith("/data.pkl"))
            Unpickler(io.BytesIO(zipped.read(name))).load()
            found += 1
    for file in sorted(checkpoint.rglob(".metadata")):
        with open(file, "rb") as opened:
            Unpickler(opened).load()
            found += 1
    if not found:
        sys.exit(f"no pickles in {checkpoint}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
