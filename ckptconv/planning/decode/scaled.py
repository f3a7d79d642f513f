"""Find weights of eight bits with scales: FP8 and INT8 of every producer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.planning.decode.part import Given, Part, refuse
from ckptconv.relations import Spec

__all__ = ["find"]

_CODES = ("float8_e4m3fn", "float8_e5m2", "int8")
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz")
# Columns that share a power of two in the microscaling formats.
_MX = 32

_SCALES = ("float32", "float16", "bfloat16", "float8_e8m0fnu", "uint8")

# What a scale is called, after the weight's own name, or in its module (DeepSeek's inference code: scale).
_ENDINGS = ("_scale_inv", "_scale")


def find(given: Given, name: str) -> Part | None:
    """Return the part of this tensor if it is a matrix of codes with a scale.

    Raises:
        PlanError: if the scale is missing, or of another shape than the codes ask for.
    """
    spec = given.tensors[name]
    module, _, leaf = name.rpartition(".")
    if leaf.endswith(("scale", "scales", "scale_inv", "zero_point")):
        return None
    if spec.dtype in _FNUZ:
        raise PlanError(
            f"{name} is {spec.dtype}: its codes have other values than {spec.dtype.removesuffix('uz')}",
            hint="convert the model as its publisher says, to float8_e4m3fn or bfloat16",
        )
    if spec.dtype not in _CODES or len(spec.shape) < 2:
        return None
    if leaf == "weight" and f"{module}.SCB" in given.tensors:
        return _llm_int8(given, name, spec)
    if spec.dtype == "int8" and leaf == "weight" and f"{module}.scale" in given.tensors:
        raise PlanError(
            f"{name} is int8 with a {module}.scale: codes of four bits in a layout that is not known",
            hint="take the model in another form, or unquantised",
        )
    scale = next((s for s in _scales(name, module, leaf) if s in given.tensors), None)
    if scale is None:
        if spec.dtype == "int8" and not given.says.method:
            return None
        wanted = f"{name}_scale_inv" if given.says.method == "fp8" else f"{name}_scale"
        given.need(wanted, of=name)
        return None
    return _scaled(given, name, spec, scale)


def _scales(name: str, module: str, leaf: str) -> tuple[str, ...]:
    return (*(name + e for e in _ENDINGS), *((f"{module}.scale",) if leaf == "weight" else ()))


def _llm_int8(given: Given, name: str, spec: Spec) -> Part:
    """Multiply by the row's scale, then divide by 127 (bitsandbytes 0.50.2, LLM.int8())."""
    module = name.rpartition(".")[0]
    scale, form = f"{module}.SCB", f"{module}.weight_format"
    found = given.need(scale, of=name)
    if found.numel != spec.shape[0] or found.dtype != "float32":
        raise refuse(scale, found, f"float32[{spec.shape[0]}]")
    if form in given.tensors and any(given.content(form)):
        raise PlanError(
            f"{form} says that the codes lie in another order than rows and columns",
            hint="save the model again with a bitsandbytes that writes them in rows (0.43 and later)",
        )
    rows, columns = spec.shape
    return Part(
        name,
        spec.shape,
        given.says.dtype or "float16",
        "int8 by rows (bitsandbytes)",
        "scaled",
        {"rows": rows, "columns": columns, "period": rows, "block": [1, columns], "divisor": 127.0},
        {"codes": (name, (rows, columns)), "scales": (scale, (rows, 1))},
        read=(form,) if form in given.tensors else (),
    )


def _scaled(given: Given, name: str, spec: Spec, scale: str) -> Part:
    found = given.tensors[scale]
    if found.dtype not in _SCALES:
        raise refuse(scale, found, f"a scale of {', '.join(_SCALES)}")
    group = given.says.group_of(name.rpartition(".")[0])
    weights = group.get("weights")
    settings: Mapping[str, Any] = weights if isinstance(weights, Mapping) else {}
    *_, rows, columns = spec.shape
    count = spec.numel // max(rows * columns, 1)
    block, tiles = _block(given, name, spec, scale, settings)
    kind = "int8" if spec.dtype == "int8" else "fp8"
    operands = {"codes": (name, (count * rows, columns)), "scales": (scale, (count * tiles[0], tiles[1]))}
    params = {"rows": count * rows, "columns": columns, "period": rows, "block": list(block)}
    zero = f"{name}_zero_point"
    if zero in given.tensors:
        held = given.tensors[zero]
        if held.numel != found.numel or held.dtype not in ("int8", "uint8"):
            raise refuse(zero, held, f"int8{list(found.shape)}")
        operands["zeros"] = (zero, (count * tiles[0], tiles[1]))
        params["zeros"] = True
    text = f"{kind} {_text(block, rows, columns)}"
    return Part(name, spec.shape, _dtype(given, found), text, "scaled", params, operands)


def _dtype(given: Given, scale: Spec) -> str:
    """Return what values are rounded to: of compressed-tensors the scale's type, as its decompress gives."""
    if given.says.method == "compressed-tensors" and scale.dtype in ("float32", "float16", "bfloat16"):
        return scale.dtype
    return "bfloat16"


def _text(block: tuple[int, int], rows: int, columns: int) -> str:
    if block == (rows, columns):
        return "with one scale"
    if block == (1, columns):
        return "by rows"
    return f"blocks of {block[0]} x {block[1]}"


def _block(
    given: Given, name: str, spec: Spec, scale: str, settings: Mapping[str, Any]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return rows and columns that share a scale, and how many such blocks there are of each.

    Raises:
        PlanError: if the scale's shape is that of no blocks the settings speak of.
    """
    *outer, rows, columns = spec.shape
    found = given.tensors[scale]
    if found.numel == 1 and len(found.shape) < 2 and not outer:
        return (rows, columns), (1, 1)
    # ModelOpt keeps the axes of a block as ones: [blocks, 1, blocks, 1].
    shape = found.shape
    if len(shape) == len(spec.shape) + 2 and shape[-1] == shape[-3] == 1:
        shape = (*shape[:-3], shape[-2])
    if len(shape) == 1 and shape[0] == rows and not outer:
        shape = (rows, 1)
    if shape == tuple(outer):
        shape = (*outer, 1, 1)
    if len(shape) == len(spec.shape) and list(shape[:-2]) == outer:
        for height, width in _candidates(given, settings, rows, columns, scale.endswith("_inv")):
            tiles = (-(-rows // height), -(-columns // width))
            if tiles == shape[-2:]:
                return (height, width), tiles
    said = settings.get("block_structure") or given.says.values.get("weight_block_size")
    sizes = f"blocks of {said}" if said else "rows, or a whole matrix"
    raise refuse(scale, found, f"a scale for {sizes} of {name}{list(spec.shape)}")


def _candidates(
    given: Given, settings: Mapping[str, Any], rows: int, columns: int, inverse: bool
) -> list[tuple[int, int]]:
    """Return the blocks that the settings speak of, then those that need no word."""
    found: list[tuple[int, int]] = []
    algorithm = str(given.says.values.get("quant_algo", ""))
    standard = [128, 128] if algorithm.startswith("FP8_PB") or (inverse and not given.says.method) else None
    for said in (settings.get("block_structure"), given.says.values.get("weight_block_size"), standard):
        if isinstance(said, list) and len(said) == 2 and all(isinstance(n, int) and n > 0 for n in said):
            found.append((said[0], said[1]))
    for group in (settings.get("group_size"), given.says.number("group_size")):
        if isinstance(group, int) and group > 0:
            found.append((1, group))
    if found and settings.get("strategy") in ("block", "group"):
        return found
    return [*found, (1, columns), (rows, columns), (rows, 1), (1, _MX)]
