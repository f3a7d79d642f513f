"""Read what MindSpore and MindFormers save."""

from ckptconv.readers.mindspore.find import looks_like_mindspore
from ckptconv.readers.mindspore.options import MindSporeOptions
from ckptconv.readers.mindspore.read import open_checkpoint
from ckptconv.readers.reader import Reader

__all__ = ["READER"]

READER = Reader("mindspore", looks_like_mindspore, open_checkpoint, MindSporeOptions)
