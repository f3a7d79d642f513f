"""Name a variable of TensorFlow as torch does, by one rule for all models.

The rule is that of transformers 4.57 (``convert_tf_weight_name_to_pt_weight_name``, in
``modeling_tf_pytorch_utils.py``): levels become dots, the last part and the number of dimensions say what was
transposed. Added are the statistics of batch normalisation, which transformers leaves behind, and the shapes
that differ by ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ckptconv.containers.torch.picklevm import short
from ckptconv.errors import FormatError
from ckptconv.records import dataclass

__all__ = ["Variable", "stripped", "torch_variable", "unscoped"]

# What TensorFlow lets a name of an operation be (2.21, core/graph/node_builder; ``:0`` is its first output).
_LEGAL: Final = re.compile(r"[A-Za-z0-9._][A-Za-z0-9_.\\/>-]*(?::\d+)?")
_LONGEST: Final = 1024

_LAST: Final[Mapping[str, str]] = {
    "kernel": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "depthwise_kernel": "depthwise.weight",
    "pointwise_kernel": "pointwise.weight",
}
_ORDERS: Final = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}
_SEPARABLE: Final = {"depthwise_kernel": (1, 2, 0), "pointwise_kernel": (2, 1, 0)}
_PROJECTIONS: Final = {"emb_projs", "out_projs"}  # Transformer-XL
_OWN_SCOPE: Final = re.compile(r"([^/]*model\.[^/]*)/\1/")


@dataclass(frozen=True, slots=True)
class Variable:
    """Say what a variable is in the torch model.

    Attributes:
        name: Its name there.
        shape: Its shape there.
        order: The variable's axes from the slowest to the fastest of the torch tensor.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]


def unscoped(name: str) -> str:
    """Take the model's own scope off a whole name: ``tf_bert_model/bert/pooler`` is ``bert/pooler``.

    Raises:
        FormatError: if it is not a name TensorFlow gives.
    """
    return _checked(name).partition("/")[2] or name


def stripped(name: str) -> str:
    """Take the scope off a name of TF safetensors, which has it only where it has the word ``model.`` in it.

    That is what ``strip_model_name_and_prefix`` does (transformers 4.57, ``modeling_tf_utils.py``).

    Raises:
        FormatError: if it is not a name TensorFlow gives.
    """
    found = _OWN_SCOPE.match(_checked(name))
    return name[len(found[1]) + 1 :] if found else name


def _checked(name: str) -> str:
    levels = name.partition(":")[0].split("/")
    if len(name) > _LONGEST or _LEGAL.fullmatch(name) is None or not {".", ".."}.isdisjoint(levels):
        raise FormatError(
            f"{short(name)!r} is not a name TensorFlow gives a variable",
            hint="the file is damaged, or was not written by TensorFlow",
        )
    return name


def _levels(name: str) -> str:
    """Replace each level ``a___b`` by ``b``: layers that carry the name of what they were once part of."""
    return re.sub(r"/[^/]*___([^/]*)(?=/)", r"/\1", name)


def torch_variable(name: str, shape: tuple[int, ...]) -> Variable:
    """Say what a variable is in torch, from its name without the model's scope, and its shape there.

    Raises:
        FormatError: if it is not a name TensorFlow gives, or has a kernel of other than 1 to 4 dimensions.
    """
    bare = re.sub(r":\d+$", "", _checked(name))
    bare = _levels(f"/{bare}").replace("_._", "/")
    parts = [p for p in bare.split("/") if p]
    last = parts[-1]
    order = tuple(range(len(shape)))
    if last in _SEPARABLE and len(shape) == 3:
        order = _SEPARABLE[last]
    elif len(shape) == 2 and not _PROJECTIONS.isdisjoint(parts):
        order = order[::-1]
    elif last == "kernel" and len(shape) > 1:
        if len(shape) not in _ORDERS:
            raise FormatError(f"{short(name)} is a kernel of {len(shape)} dimensions, which no rule turns")
        order = _ORDERS[len(shape)]
    parts[-1] = _LAST.get(last, last)
    turned = tuple(shape[axis] for axis in order)
    return Variable(".".join(parts), _reshaped(parts, turned), order)


def _reshaped(parts: list[str], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape as torch has it where it differs by ones.

    A bias of TensorFlow's Conv1D is a row; a scale is a list of one; those of SwiftFormer and of a separable
    convolution (ConvBERT) have ones behind them; the gain of a normalised weight turns round.
    """
    last, length = parts[-1], len(shape)
    if last == "bias" and length == 2 and shape[0] == 1:
        return shape[1:]
    if last == "bias" and length == 1 and parts[-2:-1] == ["key_conv_attn_layer"]:
        return (*shape, 1)
    if last == "logit_scale" and shape == (1,):
        return ()
    if last.startswith("layer_scale") and length == 1 and "network" in parts:
        return (*shape, 1, 1)
    if last == "weight_g" and length == 3 and shape[1:] == (1, 1):
        return shape[::-1]
    return shape
