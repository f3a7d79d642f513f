"""Read what NeMo 1 leaves: a ``.nemo`` archive, or the folder it was unpacked to."""

from ckptconv.plugins import later
from ckptconv.readers.megatron.options import MegatronOptions
from ckptconv.readers.nemo.find import recognise
from ckptconv.readers.reader import Reader

__all__ = ["READER"]

READER = Reader("nemo", recognise, later("ckptconv.readers.nemo.read:open_checkpoint"), MegatronOptions)
