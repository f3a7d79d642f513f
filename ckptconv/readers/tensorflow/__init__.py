"""Read what transformers 4 saved of its TensorFlow models, and what TensorFlow 1's saver wrote."""

from ckptconv.readers.reader import Reader
from ckptconv.readers.tensorflow.find import looks_like_tensorflow
from ckptconv.readers.tensorflow.options import TensorFlowOptions
from ckptconv.readers.tensorflow.read import open_tensorflow

__all__ = ["READER"]

READER = Reader("tensorflow", looks_like_tensorflow, open_tensorflow, TensorFlowOptions)
