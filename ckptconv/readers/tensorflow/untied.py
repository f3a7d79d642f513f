"""Find output matrices that TensorFlow keeps apart from the embedding, and trained apart from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, Final

import numpy as np

from ckptconv.containers.stored import Stored, from_file_tensor
from ckptconv.dialects.tensorflow.names import Variable
from ckptconv.dialects.tensorflow.special import Left, Model
from ckptconv.plans.checkpoint import Note
from ckptconv.readers.sample import Sampler
from ckptconv.readers.tensorflow.find import Found

__all__ = ["part"]

_LOOKED_AT: Final = 64  # elements of a matrix, spread over it
_KEY: Final = "tie_word_embeddings"
# Those whose torch class then has it as a tensor of its own, and no other one more.
_TYPES: Final = ("speech_to_text", "xglm")


def part(
    found: Iterable[Found],
    rows: Mapping[str, Variable],
    written: Mapping[str, Variable],
    left: Mapping[str, Left],
    model: Model,
    config: Mapping[str, Any],
) -> tuple[dict[str, Variable], dict[str, Left], list[Note]]:
    """Write a matrix of its own where it differs from the embedding it would be compared with.

    Args:
        found: The variables.
        rows: What the rule says of each.
        written: Those that are written.
        left: Those that are not.
        model: What is known of the model.
        config: Its config.json; where that says the two are tied, they must be equal.

    Returns:
        The variables that are written and those that are not, and a warning for each that was parted.
    """
    at = {f.name: f for f in found}
    origin = {v.name: name for name, v in written.items()}
    kept, rest, notes = dict(written), dict(left), []
    for name, item in left.items():
        source = origin.get(item.copy_of or "")
        if source is None or model.model_type not in _TYPES or config.get(_KEY) is True:
            continue
        if _differ(at[name], rows[name], at[source], written[source]):
            kept[name] = rows[name]
            del rest[name]
            text = f"{rows[name].name} differs from {item.copy_of}: TensorFlow trains them apart, so both are"
            notes.append(Note("warning", f"{text} written, and {_KEY} is false"))
    return kept, rest, notes


def _differ(one: Found, how: Variable, other: Found, that: Variable) -> bool:
    """Whether two variables that would be one tensor differ in any of the elements looked at."""
    if prod(how.shape) != prod(that.shape) or one.tensor.dtype != other.tensor.dtype:
        return True
    sampler = Sampler()
    a, b = from_file_tensor(one.tensor), from_file_tensor(other.tensor)
    for flat in np.unique(np.linspace(0, max(a.numel - 1, 0), _LOOKED_AT).astype(int)) if a.numel else ():
        values = [_element(sampler, s, v, int(flat)) for s, v in ((a, how), (b, that))]
        if values[0] != values[1]:
            return True
    return False


def _element(sampler: Sampler, stored: Stored, variable: Variable, flat: int) -> bytes:
    """Return the bytes of an element of the torch tensor, from where the variable has it."""
    turned = tuple(stored.shape[axis] for axis in variable.order)
    place = np.unravel_index(flat, turned)
    mine = [0] * len(turned)
    for axis, index in zip(variable.order, place, strict=True):
        mine[axis] = int(index)
    at = int(np.ravel_multi_index(mine, stored.shape)) if mine else 0
    return sampler.elements(stored, at, at + 1).tobytes()
