"""Read a few elements of a tensor while a checkpoint is opened, to decide what names alone cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import Stored, from_file_tensor
from ckptconv.dtypes import numpy_dtype
from ckptconv.errors import FormatError
from ckptconv.numbers.casts import cast
from ckptconv.places.regular import open_binary

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Sampler"]


class Sampler:
    """Read short runs of elements from files, opened as needed; what is read is remembered."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int, int], bytes] = {}

    def elements(self, source: Stored | FileTensor, lo: int, hi: int) -> npt.NDArray[Any]:
        """Return elements ``lo`` up to ``hi`` of the flat tensor, in its own dtype."""
        stored = from_file_tensor(source) if isinstance(source, FileTensor) else source
        raw = b"".join(self._bytes(*span) for span in stored.spans(lo, hi))
        return np.frombuffer(raw, numpy_dtype(stored.dtype))

    def rounds_to(self, master: Stored, at: int, model: FileTensor) -> bool:
        """Whether the master's elements from ``at`` on, rounded, start the model's tensor."""
        return self.apart(master, at, model) is None

    def apart(self, master: Stored, at: int, model: FileTensor, count: int = 512) -> int | None:
        """Return the first of the model's elements looked at that the master's do not round to.

        The first and the last ``count`` elements are compared, with the master's from ``at`` on; a NaN equals
        any other, as those that training leaves have no one bit pattern. What cannot be compared is apart.
        """
        for lo, differ in self._compared(master, at, model, count):
            if differ.any():
                return lo + int(np.argmax(differ))
        return None

    def resembles(self, master: Stored, at: int, model: FileTensor) -> bool:
        """Whether most of the elements looked at are those the master's round to: damage spares the rest."""
        found = [differ for _, differ in self._compared(master, at, model, 512)]
        return 2 * sum(int(d.sum()) for d in found) < sum(d.size for d in found)

    def _compared(
        self, master: Stored, at: int, model: FileTensor, count: int
    ) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
        """Yield the first element of a run of the model's, and which of the run differ."""
        if not model.is_contiguous or master.dtype.kind != "float" or model.dtype.kind != "float":
            yield 0, np.ones(1, np.bool_)
            return
        n = model.numel
        for lo, hi in ((0, min(count, n)), (max(0, n - count), n)):
            ours = cast(self.elements(master, at + lo, at + hi), master.dtype, model.dtype)
            theirs = self.elements(model, lo, hi)
            yield lo, (ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))

    def _bytes(self, path: str, offset: int, count: int) -> bytes:
        key = (path, offset, count)
        if key not in self._seen:
            with open_binary(path) as f:
                f.seek(offset)
                self._seen[key] = f.read(count)
            if len(self._seen[key]) != count:
                raise FormatError(f"the file ends before byte {offset + count}", where=path)
        return self._seen[key]
