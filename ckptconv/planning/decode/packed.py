"""Find weights of packed integers: compressed-tensors, GPTQ, AWQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ckptconv.errors import PlanError
from ckptconv.planning.decode.part import Given, Part, refuse
from ckptconv.relations import Spec

__all__ = ["compressed", "qweight"]

_FLOATS = ("float16", "bfloat16", "float32")


def compressed(given: Given, name: str) -> Part:
    """Return the part of ``m.weight_packed`` of words (compressed-tensors 0.19, pack_quantized/base.py)."""
    module = name.rpartition(".")[0]
    spec, scale, says = given.tensors[name], f"{module}.weight_scale", f"{module}.weight_shape"
    found = given.need(scale, of=name)
    rows, columns = _shape(given, says, name)
    settings = _settings(given, module)
    bits, dense = _bits(settings, spec, name, rows, columns)
    size = settings.get("group_size")
    group = size if isinstance(size, int) and 0 < size < columns else columns
    groups = -(-columns // group)
    shape = found.shape if len(found.shape) == 2 else (found.numel, 1)
    if shape[1:] == (1,) and groups > 1 and settings.get("strategy") not in ("group", "tensor_group"):
        group, groups = columns, 1
    if shape not in ((rows, groups), (1, 1)) or found.dtype not in _FLOATS:
        raise refuse(scale, found, f"a scale [{rows}, {groups}] for groups of {group} columns")
    shared = shape == (1, 1) and rows > 1
    if shared:
        group, groups = columns, 1
    params: dict[str, Any] = {"rows": rows, "columns": columns, "bits": bits, "dense": dense}
    params |= {"group": group, "groups": groups}
    operands = {"codes": (name, spec.shape[:2]), "scales": (scale, shape)}
    if shared:
        params["shared"] = True
    zero, order = f"{module}.weight_zero_point", f"{module}.weight_g_idx"
    if zero in given.tensors:
        operands["zeros"] = (zero, _zeros(given, zero, 1 if shared else rows, groups, bits, dense))
        params["zeros"] = True
    elif settings.get("symmetric") is False:
        given.need(zero, of=name)
    if order in given.tensors:
        operands["order"] = (order, _order(given, order, columns))
        params["ordered"] = True
    grouped = isinstance(size, int) and size > 0 and not shared
    each = f"groups of {size}" if grouped else "with one scale" if shared else "by rows"
    # mypy sees the shapes of specs as of any length.
    checked = {role: (n, (int(s[0]), int(s[1]))) for role, (n, s) in operands.items()}
    return Part(
        f"{module}.weight", (rows, columns), found.dtype, f"int{bits} {each}", "packed", params, checked,
        read=(says,),
    )  # fmt: skip


def _shape(given: Given, name: str, codes: str) -> tuple[int, int]:
    spec = given.need(name, of=codes)
    if spec.numel != 2 or spec.dtype not in ("int32", "int64"):
        raise refuse(name, spec, "int64[2]")
    rows, columns = (int(n) for n in np.frombuffer(given.content(name), spec.dtype))
    if rows < 1 or columns < 1:
        raise PlanError(f"{name} says that the weight is [{rows}, {columns}]")
    return rows, columns


def _settings(given: Given, module: str) -> Mapping[str, Any]:
    settings = given.says.group_of(module).get("weights")
    return settings if isinstance(settings, Mapping) else {}


def _bits(settings: Mapping[str, Any], spec: Spec, name: str, rows: int, columns: int) -> tuple[int, bool]:
    """Return how many bits a code has, and whether codes run on over the ends of words (since 0.14)."""
    said = settings.get("num_bits")
    if spec.dtype != "int32" or len(spec.shape) != 2 or spec.shape[0] != rows:
        raise refuse(name, spec, f"int32[{rows}, words]")
    known = [said] if isinstance(said, int) and not isinstance(said, bool) else [4, 8]
    for bits in known:
        if not 1 <= bits <= 8:
            continue
        if spec.shape[1] == -(-columns * bits // 32):
            return bits, True
        if spec.shape[1] == -(-columns // (32 // bits)):
            return bits, False
    raise refuse(name, spec, f"int32[{rows}, words of {columns} codes of {said or 'so many'} bits]")


def _zeros(given: Given, name: str, rows: int, groups: int, bits: int, dense: bool) -> tuple[int, int]:
    spec = given.tensors[name]
    words = -(-rows * bits // 32) if dense else -(-rows // (32 // bits))
    if spec.shape != (words, groups) or spec.dtype != "int32":
        raise refuse(name, spec, f"int32[{words}, {groups}]")
    return words, groups


def _order(given: Given, name: str, length: int) -> tuple[int, int]:
    spec = given.tensors[name]
    if spec.numel != length or spec.dtype not in ("int32", "int64"):
        raise refuse(name, spec, f"int32[{length}]")
    return 1, length


def qweight(given: Given, name: str) -> Part:
    """Return the part of ``m.qweight``: GPTQ's or AWQ's.

    Raises:
        PlanError: if the files say nothing of it, or speak of another layout.
    """
    method, values = given.says.method, given.says.values
    if method == "awq":
        version = str(values.get("version", "gemm")).lower()
        if version != "gemm":
            raise _other(name, f"AWQ's {version}")
        return _awq(given, name)
    if method not in ("gptq", "auto-round", "intel/auto-round", "autoround"):
        raise PlanError(
            f"{name} is quantised, but no file says how"
            if not method
            else f"{name} is quantised by {method}",
            hint="put the model's config.json or quantize_config.json beside it: GPTQ and AWQ order the same "
            "bits in different ways",
        )
    form = str(values.get("checkpoint_format") or values.get("packing_format") or "gptq").lower()
    known = {"gptq": 1, "gptq_v2": 0, "auto_round:auto_gptq": 1, "auto_round:gptq": 1}
    if form not in known or values.get("is_marlin_format"):
        if form == "auto_round:auto_awq":
            return _awq(given, name)
        raise _other(name, f"GPTQ's {'marlin' if values.get('is_marlin_format') else form}")
    return _gptq(given, name, known[form])


def _other(name: str, layout: str) -> PlanError:
    return PlanError(
        f"{name} is in the layout of {layout}, which is not known",
        hint="known are GPTQ (gptq, gptq_v2) and AWQ (gemm): take the model in one of them, or unquantised",
    )


def _gptq(given: Given, name: str, plus: int) -> Part:
    module = name.rpartition(".")[0]
    spec = given.tensors[name]
    scale, zero, order = (f"{module}.{leaf}" for leaf in ("scales", "qzeros", "g_idx"))
    scales, zeros = given.need(scale, of=name), given.need(zero, of=name)
    bits = given.says.number("bits")
    if bits is None or not 2 <= bits <= 8:
        raise PlanError(f"{name}: {given.says.origin} says no bits from 2 to 8", hint="look at its 'bits'")
    if order not in given.tensors and given.says.values.get("desc_act") is not False:
        given.need(order, of=name)
    known = order in given.tensors
    rows = given.tensors[order].numel if known else 32 * spec.shape[0] // bits if spec.shape else 0
    if spec.dtype != "int32" or len(spec.shape) != 2 or spec.shape[0] != -(-rows * bits // 32):
        raise refuse(name, spec, f"int32[{-(-rows * bits // 32)}, out] ({rows} codes of {bits} bits)")
    columns = spec.shape[1]
    groups = scales.shape[0] if scales.shape else 0
    if scales.shape != (groups, columns) or not groups or scales.dtype not in _FLOATS:
        raise refuse(scale, scales, f"float16[groups, {columns}]")
    words = -(-columns * bits // 32)
    if zeros.shape != (groups, words) or zeros.dtype != "int32":
        raise refuse(zero, zeros, f"int32[{groups}, {words}]")
    params = {"rows": rows, "columns": columns, "bits": bits, "groups": groups, "plus": plus}
    operands = {
        "codes": (name, (spec.shape[0], columns)),
        "scales": (scale, (groups, columns)),
        "zeros": (zero, (groups, words)),
    }
    if known:
        operands["order"] = (order, _order(given, order, rows))
    else:
        params["group"] = _in_order(given, scale, scales, rows)
    return Part(
        f"{module}.weight",
        (columns, rows),
        _rounded(given, scales),
        _grouped(given, bits),
        "gptq",
        params,
        operands,
        order=(1, 0),
    )


def _in_order(given: Given, name: str, scales: Spec, rows: int) -> int:
    """Return how many rows a group has where no index says it (GPTQ before it kept one)."""
    size = given.says.number("group_size")
    group = rows if size is None or size <= 0 else min(size, rows)
    if scales.shape[0] != -(-rows // group):
        raise refuse(name, scales, f"[{-(-rows // group)}, out] for groups of {group} rows")
    return group


def _grouped(given: Given, bits: int) -> str:
    size = given.says.number("group_size")
    return f"int{bits} groups of {size} (GPTQ)" if size is not None and size > 0 else f"int{bits} (GPTQ)"


def _awq(given: Given, name: str) -> Part:
    module = name.rpartition(".")[0]
    spec = given.tensors[name]
    scale, zero = f"{module}.scales", f"{module}.qzeros"
    scales, zeros = given.need(scale, of=name), given.need(zero, of=name)
    bits = given.says.number("bits", "w_bit")
    if bits not in (None, 4):
        raise _other(name, f"AWQ with {bits} bits")
    if spec.dtype != "int32" or len(spec.shape) != 2:
        raise refuse(name, spec, "int32[in, out / 8]")
    rows, words = spec.shape
    size = given.says.number("group_size", "q_group_size")
    group = rows if size is None or size <= 0 else min(size, rows)
    groups = -(-rows // group)
    if scales.shape != (groups, 8 * words) or scales.dtype not in _FLOATS:
        raise refuse(scale, scales, f"float16[{groups}, {8 * words}] for groups of {group} rows")
    if zeros.shape != (groups, words) or zeros.dtype != "int32":
        raise refuse(zero, zeros, f"int32[{groups}, {words}]")
    return Part(
        f"{module}.weight",
        (8 * words, rows),
        _rounded(given, scales),
        f"int4 groups of {group} (AWQ)",
        "awq",
        {"rows": rows, "columns": 8 * words, "group": group},
        {
            "codes": (name, (rows, words)),
            "scales": (scale, (groups, 8 * words)),
            "zeros": (zero, (groups, words)),
        },
        order=(1, 0),
    )


def _rounded(given: Given, scales: Spec) -> str:
    """Return what values are rounded to: the type of 16 bits that the scales have, else the config's."""
    return scales.dtype if scales.dtype != "float32" else given.says.dtype or "float16"
