"""Read what DeepSpeed's ``save_checkpoint`` writes, from 0.3 to 0.19."""

from ckptconv.plugins import later
from ckptconv.readers.deepspeed.options import DeepSpeedOptions
from ckptconv.readers.reader import Reader

__all__ = ["READER"]

READER = Reader(
    "deepspeed",
    later("ckptconv.readers.deepspeed.find:looks_like_deepspeed"),
    later("ckptconv.readers.deepspeed.read:open_deepspeed"),
    DeepSpeedOptions,
    later("ckptconv.readers.deepspeed.saves:saves"),
    later("ckptconv.readers.deepspeed.saves:lacking"),
)
