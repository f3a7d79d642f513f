"""A quantisation of the zoo's own: bytes, one step for all of them, 128 is zero."""

import numpy as np

from ckptconv.numbers.codecs.base import Codec, round_into
from ckptconv.planning.decode.part import Part, refuse


def find(given, name):
    """Return the weight that ``*.zoo_codes`` is."""
    if not name.endswith(".zoo_codes"):
        return None
    spec, stem = given.tensors[name], name.removesuffix(".zoo_codes")
    step = given.need(f"{stem}.zoo_step", of=name)
    if step.numel != 1:
        raise refuse(f"{stem}.zoo_step", step, "one step")
    rows, columns = spec.shape
    return Part(
        f"{stem}.weight",
        spec.shape,
        "bfloat16",
        "the zoo's bytes",
        "zoo",
        {"rows": rows, "columns": columns},
        {"codes": (name, (rows, columns)), "step": (f"{stem}.zoo_step", (1, 1))},
    )


def needs(params, rect):
    """Return the codes of a part, and the step."""
    return {"codes": rect, "step": (0, 1, 0, 1)}


def decode(params, rect, tiles, out):
    """Multiply by the step."""
    round_into((tiles["codes"].astype(np.float32) - np.float32(128)) * tiles["step"][0, 0], out)


CODEC = Codec("zoo", needs, decode, find=find)
