"""Define a container that weights are written in, and list those there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckptconv.containers.base import FileLayout
from ckptconv.dtypes import DType
from ckptconv.plugins import Registry
from ckptconv.records import dataclass

__all__ = ["CONTAINERS", "Container", "Tensor", "seal_of"]

Tensor = tuple[str, DType, tuple[int, ...]]
"""Name, element type and shape of a tensor to be written."""

Seal = Callable[[FileLayout, Sequence[int]], tuple[tuple[int, bytes], ...]]
SealPiece = Callable[[FileLayout, int, int, int], bytes | None]


@dataclass(frozen=True, slots=True)
class Container:
    """Tie a container's name to the function that fixes every byte but the data.

    Attributes:
        name: Its name, also the suffix of its files: ``safetensors``.
        lay_out: Lays a file out: every byte except the tensors' data, which lie contiguous and row-major.
        seal: Returns what is written over a finished file once the CRC-32 sums of its tensors' data are
            known; None if the container records none.
        seal_piece: Returns the piece of this number of ``fixed``, behind the tensor of this number and CRC-32
            sum, as `seal` leaves it; None if it says sums of other tensors too. Without it, all that lies
            behind tensors is written when the file is sealed.
        stem: What a Hugging Face model's file of weights is called, without the suffix; empty if models are
            not kept in it.
    """

    name: str
    lay_out: Callable[[Sequence[Tensor]], FileLayout]
    seal: Seal | None = None
    seal_piece: SealPiece | None = None
    stem: str = ""


_OWN = {
    "safetensors": "ckptconv.containers.safetensors:CONTAINER",
    "bin": "ckptconv.containers.torch.torchbin:CONTAINER",
    "ckpt": "ckptconv.containers.mindspore.mindspore_out:CONTAINER",
}

CONTAINERS: Registry[Container] = Registry("containers", _OWN, lambda: Container)
"""ckptconv's containers, then those of installed plug-ins (entry point ``ckptconv.containers``)."""


def seal_of(layout: FileLayout) -> tuple[Seal, SealPiece]:
    """Return the functions that seal a file of this layout, and one piece of it.

    Raises:
        LookupError: if no container has that name, or it records no sums.
    """
    found = CONTAINERS.find(layout.sealed_by)
    if found is None or found.seal is None:
        raise LookupError(f"no container {layout.sealed_by!r} that records sums")
    return found.seal, found.seal_piece or _never


def _never(layout: FileLayout, piece: int, tensor: int, crc: int) -> None:
    return None
