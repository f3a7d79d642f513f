"""Say where the fp32 master of a parameter lies in the flat partitions, whatever stage they are of."""

from __future__ import annotations

from ckptconv.records import dataclass
from ckptconv.relations import Box, Pair

__all__ = ["Master", "Shape"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Master:
    """Say where a parameter's elements lie: boxes of stored tensors that fill it from front to back."""

    shape: Shape
    boxes: tuple[Box, ...]

    def pairs(self, name: str, *, copy: bool = False) -> list[Pair]:
        """Pair the boxes with the flat elements of the tensor ``name``."""
        pairs, at = [], 0
        for box in self.boxes:
            n = box.numel
            pairs.append(Pair(box, Box.interval(name, at, at + n), left_copy=copy))
            at += n
        return pairs
