"""Read what DeepSpeed's ``save_checkpoint`` writes, from 0.3 to 0.19."""

from ckptconv.readers.deepspeed.find import looks_like_deepspeed
from ckptconv.readers.deepspeed.options import DeepSpeedOptions
from ckptconv.readers.deepspeed.read import open_deepspeed
from ckptconv.readers.reader import Reader

__all__ = ["READER"]

READER = Reader("deepspeed", looks_like_deepspeed, open_deepspeed, DeepSpeedOptions)
