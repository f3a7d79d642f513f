"""Read PyTorch distributed checkpoints (DCP): the sharded state dicts of FSDP, accelerate, torchtitan, ..."""

from ckptconv.plugins import later
from ckptconv.readers.dcp.find import lacking, recognise
from ckptconv.readers.reader import Reader, Weighed

__all__ = ["READER"]

READER = Reader(
    "dcp", recognise, later("ckptconv.readers.dcp.read:open_checkpoint"), Weighed, lacking=lacking
)
