"""Read what DeepSpeed's ``save_checkpoint`` writes, from 0.3.14 to 0.19."""

from ckptconv.readers.base import Reader
from ckptconv.readers.deepspeed.find import looks_like_deepspeed
from ckptconv.readers.deepspeed.read import open_deepspeed

__all__ = ["READER"]

READER = Reader("deepspeed", looks_like_deepspeed, open_deepspeed)
