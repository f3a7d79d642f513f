"""Name the variables of transformers' TensorFlow models, and of TensorFlow 1, as its torch models do."""

from __future__ import annotations

from ckptconv.dialects.tensorflow.classes import class_of, scope_of
from ckptconv.dialects.tensorflow.inverse import Placement, variables_for
from ckptconv.dialects.tensorflow.names import Variable, stripped, torch_variable, unscoped
from ckptconv.dialects.tensorflow.saver import family_of, saved_variables
from ckptconv.dialects.tensorflow.special import Left, Model, settle

__all__ = [
    "Left",
    "Model",
    "Placement",
    "Variable",
    "class_of",
    "family_of",
    "saved_variables",
    "scope_of",
    "settle",
    "stripped",
    "torch_variable",
    "unscoped",
    "variables_for",
]
