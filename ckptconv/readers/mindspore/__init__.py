"""Read what MindSpore and MindFormers save."""

from ckptconv.plugins import later
from ckptconv.readers.mindspore.find import looks_like_mindspore, saves
from ckptconv.readers.mindspore.options import MindSporeOptions
from ckptconv.readers.reader import Reader

__all__ = ["READER"]

READER = Reader(
    "mindspore",
    looks_like_mindspore,
    later("ckptconv.readers.mindspore.read:open_checkpoint"),
    MindSporeOptions,
    saves,
)
