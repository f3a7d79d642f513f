"""Read what MindSpore and MindFormers save."""

from ckptconv.readers.base import Reader
from ckptconv.readers.mindspore.find import looks_like_mindspore
from ckptconv.readers.mindspore.read import open_checkpoint

__all__ = ["READER"]

READER = Reader("mindspore", looks_like_mindspore, open_checkpoint)
