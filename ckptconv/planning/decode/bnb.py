"""Find weights of bitsandbytes' four bits."""

from __future__ import annotations

import json
from math import prod
from typing import Any

from ckptconv.dtypes import BY_NAME
from ckptconv.errors import PlanError
from ckptconv.planning.decode.part import Given, Part, refuse

__all__ = ["MARK", "find"]

MARK = ".quant_state.bitsandbytes__"
"""Stands between a weight's name and its kind in the name of the tensor that describes it."""

_KINDS = ("nf4", "fp4")
_MOST = 1 << 16  # bytes of a description
_LONGEST = 1 << 16  # elements that share a scale; bitsandbytes knows 64 to 4,096


def find(given: Given, state: str) -> Part:
    """Return the part that a state speaks of: JSON in bytes (bitsandbytes 0.50.2, functional.py, QuantState).

    Raises:
        PlanError: if it is damaged, or does not fit the tensors.
    """
    name, _, kind = state.partition(MARK)
    if kind not in _KINDS:
        raise PlanError(f"{name} is quantised as bitsandbytes' {kind}, which is not known")
    says = _state(given, state)
    codes = given.need(name, of=state)
    shape = tuple(_whole(says, "shape", state, n) for n in says.get("shape") or ())
    numel, block = prod(shape), _whole(says, "blocksize", state)
    if len(shape) < 2 or codes.dtype != "uint8" or codes.numel != -(-numel // 2):
        raise refuse(name, codes, f"uint8 of {-(-numel // 2)} bytes for {list(shape)}")
    dtype = str(says.get("dtype")).removeprefix("torch.")
    if dtype not in BY_NAME or BY_NAME[dtype].kind != "float":
        raise PlanError(
            f"{state} says that the values are {dtype}", hint="the file is damaged: copy it again"
        )
    rows, columns = prod(shape[:-1]), shape[-1]
    runs = -(-numel // block)
    params: dict[str, Any] = {"rows": rows, "columns": columns, "block": block}
    operands = {"codes": (name, (1, codes.numel))}
    _add(given, operands, "table", f"{name}.quant_map", 16, "float32", name)
    if says.get("nested_blocksize"):
        nested = _whole(says, "nested_blocksize", state)
        offset = says.get("nested_offset", 0.0)
        if not isinstance(offset, int | float):
            raise PlanError(f"{state}: nested_offset is {offset!r}")
        _add(given, operands, "scales", f"{name}.absmax", runs, "uint8", name)
        _add(given, operands, "nested", f"{name}.nested_absmax", -(-runs // nested), "float32", name)
        _add(given, operands, "nested_table", f"{name}.nested_quant_map", 256, "float32", name)
        params |= {"nested": nested, "offset": float(offset)}
    else:
        _add(given, operands, "scales", f"{name}.absmax", runs, "float32", name)
    text = f"{kind} in runs of {block} (bitsandbytes, 4 bit)"
    return Part(name, shape, dtype, text, "bnb", params, operands, read=(state,))


def _state(given: Given, name: str) -> dict[str, Any]:
    spec = given.tensors[name]
    if spec.dtype != "uint8" or not 0 < spec.numel <= _MOST:
        raise refuse(name, spec, f"JSON of at most {_MOST} bytes")
    try:
        found = json.loads(given.content(name))
    except (ValueError, RecursionError) as e:
        raise PlanError(f"{name} is not JSON: {e}", hint="the file is damaged: copy it again") from e
    if not isinstance(found, dict):
        raise PlanError(f"{name} is no JSON object", hint="the file is damaged: copy it again")
    return found


def _whole(says: dict[str, Any], key: str, state: str, value: object = None) -> int:
    value = says.get(key) if value is None else value
    most = _LONGEST if key.endswith("blocksize") else 1 << 62
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise PlanError(f"{state}: {key} is {value!r}", hint="the file is damaged: copy it again")
    return value


def _add(
    given: Given,
    operands: dict[str, tuple[str, tuple[int, int]]],
    role: str,
    name: str,
    count: int,
    dtype: str,
    of: str,
) -> None:
    spec = given.need(name, of=of)
    if spec.numel != count or spec.dtype != dtype:
        raise refuse(name, spec, f"{dtype}[{count}]")
    operands[role] = (name, (1, count))
