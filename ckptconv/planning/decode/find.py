"""Find every quantised weight of a checkpoint, and what beside them nobody needs."""

from __future__ import annotations

from collections.abc import Iterable

from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError
from ckptconv.numbers.codecs import CODECS
from ckptconv.planning.decode.part import Given, Part

__all__ = ["IDLE", "find_parts", "is_quantised", "refuse_rest"]

IDLE = frozenset(
    (
        *("input_scale", "activation_scale", "output_scale", "input_global_scale", "prob_scale"),
        *("k_scale", "v_scale", "q_scale", "kv_scale"),
        *("k_zero_point", "v_zero_point", "input_zero_point", "output_zero_point"),
    )
)
"""Scales of activations and caches, by the last word of their names: the values of weights need none."""

# Methods all of whose layouts above are known; of bitsandbytes and the others the tensors tell.
_KNOWN = frozenset(
    (
        *("", "fp8", "fbgemm_fp8", "compressed-tensors", "gptq", "awq", "bitsandbytes", "mxfp4", "modelopt"),
        *("mxfp8", "modelopt_fp4", "modelopt_mixed"),
        *("auto-round", "intel/auto-round", "autoround", "of an unknown kind"),
    )
)

# Last words of names of layouts that are not known, and whose they are.
_FOREIGN = {
    "W_q": "HQQ",
    "codebooks": "AQLM",
    "codes": "AQLM",
    "Qidxs": "QuIP#",
    "SU": "QuIP#",
    "trellis": "EXL3",
    "q_weight": "EXL2",
    "q_invperm": "EXL2",
    "B": "Marlin",
    "weight_packed_24": "sparse 2:4",
    "bitmask": "sparse",
    "compressed": "sparse",
    "pre_quant_scale": "ModelOpt's AWQ",
    "qscale_weight": "Mistral's own names",
}
_LEAVES = ("weight_scale", "weight_scale_inv", "qweight", "qzeros", "weight_packed", "SCB", "absmax")


def find_parts(given: Given) -> list[Part]:
    """Return the quantised weights, and take what they are made of out of ``given.left``.

    Raises:
        PlanError: if one lacks what it needs, has another shape than it should, or is of a layout that is not
            known.
    """
    _refuse_settings(given)
    given.left.update(dict.fromkeys(given.tensors))
    foreign = [c.find for c in CODECS if c.find is not None] if given.says.method not in _KNOWN else []
    found = []
    for name in given.tensors:
        part: Part | None = next((p for find in foreign if (p := find(given, name)) is not None), None)
        part = part if part is not None else _part(given, name)
        if part is not None:
            found.append(part)
            for member in part.members:
                given.left.pop(member, None)
    return found


def _part(given: Given, name: str) -> Part | None:
    from ckptconv.planning.decode import bnb, fp4, packed, scaled

    spec, tensors = given.tensors[name], given.tensors
    leaf = name.rpartition(".")[2]
    if bnb.MARK in name:
        return bnb.find(given, name)
    if leaf == "weight_packed":
        return packed.compressed(given, name) if spec.dtype == "int32" else fp4.packed(given, name)
    if leaf == "qweight":
        return packed.qweight(given, name)
    if name.endswith("_blocks") and spec.dtype == "uint8":
        return fp4.blocks(given, name)
    if spec.dtype == "uint8" and f"{name}_scale_2" in tensors:
        return fp4.modelopt(given, name)
    return scaled.find(given, name)


def _refuse_settings(given: Given) -> None:
    """Refuse settings under which values are no longer code times scale."""
    values = given.says.values
    transform, sparsity = values.get("transform_config"), values.get("sparsity_config")
    if isinstance(transform, dict) and transform.get("config_groups"):
        raise _unknown(given, "compressed-tensors with rotations (transform_config)")
    if isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense"):
        raise _unknown(given, f"compressed-tensors' {sparsity['format']}")
    if str(values.get("format")) in ("marlin-24", "sparse-24-bitmask", "sparse-bitmask"):
        raise _unknown(given, f"compressed-tensors' {values['format']}")


def _unknown(given: Given, layout: str) -> PlanError:
    return PlanError(
        f"the model is quantised in the layout of {layout}, which is not known",
        where=given.says.origin or None,
        hint="take the model unquantised, or let its own tool write values; --to hf copies it as it is",
    )


def refuse_rest(given: Given) -> None:
    """Refuse what is left if any of it looks quantised: it would be written as weights.

    Raises:
        PlanError: naming the tensor, and the layout where that is known.
    """
    for name in given.left:
        leaf = name.rpartition(".")[2]
        if leaf in _FOREIGN and given.says.method:
            raise _unknown(given, f"{_FOREIGN[leaf]} ({name})")
    if given.says.method not in _KNOWN and _looks(given, given.left):
        raise _unknown(given, given.says.method)
    for name in given.left:
        spec, leaf = given.tensors[name], name.rpartition(".")[2]
        if leaf in _LEAVES or spec.dtype.startswith("float8") or _raw(leaf, spec.dtype):
            said = f"{name} is {spec.dtype}{list(spec.shape)}"
            raise PlanError(
                f"{said}: codes or scales of a weight that is not understood",
                where=given.says.origin or None,
                hint="its codes, its scales or its quantization_config are missing: copy every file of the "
                "quantised model",
            )


def is_quantised(given: Given) -> bool:
    """Tell whether tensors look quantised in a layout that may not be known."""
    return _looks(given, given.tensors) or any(n.rpartition(".")[2] in _LEAVES for n in given.tensors)


def _looks(given: Given, names: Iterable[str]) -> bool:
    strange = given.says.method not in _KNOWN  # any matrix of integers may be its codes
    return any(
        (dtype := given.tensors[n].dtype).startswith("float8")
        or _raw(leaf := n.rpartition(".")[2], dtype)
        or (dtype == "uint8" and leaf.endswith("_blocks"))
        or (strange and dtype_named(dtype).kind == "int" and len(given.tensors[n].shape) > 1)
        for n in names
    )


def _raw(leaf: str, dtype: str) -> bool:
    """Whether a tensor of weights is of no type that weights have."""
    return leaf in ("weight", "W_q", "codes", "_data") and dtype_named(dtype).kind in ("int", "bool")
