"""Read what verl saves of an FSDP model: one torch file a rank, of DTensors or ShardedTensors."""

from ckptconv.plugins import later
from ckptconv.readers.reader import Reader, Weighed
from ckptconv.readers.verl.find import lacking, recognise

__all__ = ["READER"]

READER = Reader(
    "verl", recognise, later("ckptconv.readers.verl.read:open_checkpoint"), Weighed, lacking=lacking
)
