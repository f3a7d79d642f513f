"""Find weights of four-bit floating-point codes: NVFP4 and MXFP4."""

from __future__ import annotations

from ckptconv.errors import PlanError
from ckptconv.planning.decode.part import Given, Part, refuse
from ckptconv.relations import Spec

__all__ = ["blocks", "modelopt", "packed"]


def packed(given: Given, name: str) -> Part:
    """Return the part of ``m.weight_packed`` of bytes (compressed-tensors 0.19, nvfp4_quantized.py).

    The scale of the whole divides the scales of the groups; scales without one are powers of two.
    """
    module = name.rpartition(".")[0]
    whole = f"{module}.weight_global_scale"
    scale = given.need(f"{module}.weight_scale", of=name)
    if scale.dtype in ("uint8", "float8_e8m0fnu") and whole not in given.tensors:
        return _groups(given, name, f"{module}.weight", f"{module}.weight_scale", 32, "mxfp4")
    given.need(whole, of=name)
    return _groups(
        given, name, f"{module}.weight", f"{module}.weight_scale", 16, "nvfp4", whole=(whole, "divides")
    )


def modelopt(given: Given, name: str) -> Part:
    """Return the part of a ``weight`` of bytes with a second scale, which multiplies (ModelOpt's NVFP4)."""
    given.need(f"{name}_scale", of=name)
    whole = (f"{name}_scale_2", "multiplies")
    return _groups(given, name, name, f"{name}_scale", 16, "nvfp4 (ModelOpt)", whole=whole)


def blocks(given: Given, name: str) -> Part:
    """Return the part of gpt-oss's ``*_blocks`` ``[E, out, groups, 16]``; its values are ``[E, in, out]``."""
    stem = name.removesuffix("_blocks")
    scale, spec = f"{stem}_scales", given.tensors[name]
    found = given.need(scale, of=name)
    if len(spec.shape) < 3 or spec.shape[-1] != 16 or spec.dtype != "uint8":
        raise refuse(name, spec, "uint8[..., out, groups, 16]")
    if found.shape != spec.shape[:-1] or found.dtype not in ("uint8", "float8_e8m0fnu"):
        raise refuse(scale, found, f"uint8{list(spec.shape[:-1])}")
    *outer, out, groups, _ = spec.shape
    rows, columns = found.numel // max(groups, 1), 32 * groups
    order = tuple(range(len(outer)))
    return Part(
        stem,
        (*outer, columns, out),
        "bfloat16",
        "mxfp4 (gpt-oss)",
        "fp4",
        {"rows": rows, "columns": columns, "group": 32},
        {"codes": (name, (rows, 16 * groups)), "scales": (scale, (rows, groups))},
        order=(*order, len(order) + 1, len(order)),
    )


def _groups(
    given: Given,
    codes: str,
    weight: str,
    scale: str,
    group: int,
    kind: str,
    *,
    whole: tuple[str, str] | None = None,
) -> Part:
    spec, found = given.tensors[codes], given.tensors[scale]
    if spec.dtype != "uint8" or len(spec.shape) < 2:
        raise refuse(codes, spec, "uint8[out, in / 2]")
    columns = 2 * spec.shape[-1]
    wanted = (*spec.shape[:-1], -(-columns // group))
    kinds = ("float8_e4m3fn",) if whole else ("uint8", "float8_e8m0fnu")
    if found.shape != wanted or found.dtype not in kinds:
        raise refuse(scale, found, f"{kinds[0]}{list(wanted)}")
    rows = spec.numel // max(spec.shape[-1], 1)
    operands = {"codes": (codes, (rows, spec.shape[-1])), "scales": (scale, (rows, wanted[-1]))}
    params: dict[str, object] = {"rows": rows, "columns": columns, "group": group}
    if whole is not None:
        operands["whole"] = (_one(given, whole[0]), (1, 1))
        params["whole"] = whole[1]
    return Part(weight, (*spec.shape[:-1], columns), "bfloat16", kind, "fp4", params, operands)


def _one(given: Given, name: str) -> str:
    spec: Spec = given.tensors[name]
    if spec.numel != 1 or spec.dtype != "float32":
        raise PlanError(
            f"{name} is {spec.dtype}{list(spec.shape)}, where one float32 is needed",
            hint="scales of several matrices that were joined are not known: take the model as published",
        )
    return name
