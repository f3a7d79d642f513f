"""Read what transformers 4 saved of its TensorFlow models, and what TensorFlow 1's saver wrote."""

from ckptconv.plugins import later
from ckptconv.readers.reader import Reader

__all__ = ["READER"]

READER = Reader(
    "tensorflow",
    later("ckptconv.readers.tensorflow.find:looks_like_tensorflow"),
    later("ckptconv.readers.tensorflow.read:open_tensorflow"),
    saves=later("ckptconv.readers.tensorflow.find:saves"),
)
