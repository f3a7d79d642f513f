"""Read Megatron-core's ``torch_dist`` checkpoints, and the plain DCP ones of Megatron-FSDP."""

from ckptconv.plugins import later
from ckptconv.readers.reader import Reader
from ckptconv.readers.torch_dist.find import lacking, recognise
from ckptconv.readers.torch_dist.options import TorchDistOptions

__all__ = ["READER"]

READER = Reader(
    "torch_dist",
    recognise,
    later("ckptconv.readers.torch_dist.read:open_checkpoint"),
    TorchDistOptions,
    lacking=lacking,
)
