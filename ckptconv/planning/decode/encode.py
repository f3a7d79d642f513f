"""Quantise a model's linear layers in blocks, as DeepSeek publishes its models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError, UsageError
from ckptconv.planning.names import Named
from ckptconv.plans.plan import Step
from ckptconv.plans.request import Request
from ckptconv.relations import Box, Drop, InBlocks, Spec
from ckptconv.relations.terms import Terms

__all__ = ["FORMS", "form_asked", "in_blocks", "quantization_config"]

FORMS = ("fp8-block", "fp8-block-ue8m0")
"""What ``--quantize`` takes: float32 scales, and scales that are powers of two."""

_BLOCK = (128, 128)
_MADE = "made of values"

# A linear layer's weight is a matrix in a layer of the model. Those of these names are left as they are in
# every model that is published in this form (DeepSeek-V3.1, Kimi-K2, Qwen3-FP8, MiniMax-M2): routers, what
# joins the embedding to a layer of multi-token prediction, and that layer's own embedding and head.
_LAYER = re.compile(r"(?:^|\.)layers\.\d+\.(?P<rest>.+)\.weight")
_LEFT = re.compile(
    r"(?:^|\.)(?:gate|router|shared_expert_gate|weights_proj|eh_proj|embed_tokens|[\w.]*norm|lm_head|head)"
    r"(?:$|\.(?:wg|layer|linear|classifier)$)|(?:^|\.)shared_head\."
)
_TOWERS = re.compile(r"(?:^|\.)(?:visual|vision\w*|audio\w*|image\w*|video\w*)\.")

# Loaders of these know by themselves what is left as it is.
_KNOWN = re.compile(r"deepseek_v3\w*|deepseek_v4\w*|kimi_k2\w*")


def form_asked(request: Request, *, alone: bool) -> str | None:
    """Return the form a request asks for.

    Args:
        request: What is to be written.
        alone: Whether an adapter alone is.

    Raises:
        UsageError: if what is written cannot be quantised.
    """
    form: str | None = getattr(request.writing, "quantize", None)
    if form is None:
        return None
    if alone:
        raise UsageError("--quantize says nothing to an adapter alone", hint="leave out --lora adapter")
    if getattr(request.writing, "format", "safetensors") != "safetensors":
        raise UsageError("--quantize writes safetensors", hint="leave out --format")
    return form


def in_blocks(named: Named, form: str | None) -> Named:
    """Return tensors of which linear layers' weights are codes, with their scales behind them.

    Args:
        named: The tensors under their final names and in their types.
        form: One of `FORMS`; None leaves all as they are.

    Raises:
        UsageError: if something is added to a weight on the way.
        PlanError: if no tensor is the weight of a linear layer.
    """
    if form is None:
        return named
    chosen = [n for n, s in named.written.items() if _is_linear(n, s)]
    if not chosen:
        raise PlanError("no tensor is the weight of a linear layer, so that there is nothing to quantise")
    if added := next((n for n in chosen if n in named.terms), None):
        raise UsageError(
            f"--quantize: an adapter is added to {added}",
            hint="merge the adapter first, and quantise the model that is written",
        )
    matrices = {n: f"{n} (values)" for n in chosen}
    relation = named.relation
    right: dict[str, Spec] = {}
    terms: dict[str, Any] = dict(named.terms)
    drops = list(relation.right_only)
    for name, spec in relation.right.items():
        if name not in matrices:
            right[name] = spec
            continue
        matrix, powers = matrices[name], form.endswith("ue8m0")
        for made, part, dtype in (
            (name, "codes", "float8_e4m3fn"),
            (f"{name}_scale_inv", "scales", "float32"),
        ):
            term = InBlocks(matrix, part, _BLOCK, powers)
            right[made] = Spec(term.shape(spec.shape), dtype)
            terms[made] = (term,)
            drops.append(Drop(Box.whole(made, right[made].shape), _MADE))
    right |= {m: relation.right[n] for n, m in matrices.items()}
    pairs = tuple(
        p._replace(right=p.right._replace(tensor=matrices[p.right.tensor]))
        if p.right.tensor in matrices
        else p
        for p in relation.pairs
    )
    what = f"{len(chosen)} weight{'' if len(chosen) == 1 else 's'} -> fp8 blocks of 128 x 128"
    why = "scale: largest magnitude / 448" + (", rounded up to a power of two" if "ue8m0" in form else "")
    return replace(
        named,
        relation=replace(relation, right=right, pairs=pairs, right_only=tuple(drops)),
        casts={matrices.get(n, n): c for n, c in named.casts.items()},
        via={matrices.get(n, n): d for n, d in named.via.items()},
        terms=_typed(terms),
        steps=(*named.steps, Step("quantise", what, why)),
    )


def _typed(terms: Mapping[str, Any]) -> Terms:
    return dict(terms)


def _is_linear(name: str, spec: Spec) -> bool:
    if len(spec.shape) != 2 or not spec.numel or _TOWERS.search(name):
        return False
    kind = dtype_named(spec.dtype)
    match = _LAYER.search(name)
    return (
        match is not None
        and kind.kind == "float"
        and kind.itemsize > 1
        and _LEFT.search(match["rest"]) is None
    )


def quantization_config(form: str, named: Named, model_type: object) -> dict[str, Any]:
    """Return what config.json says of the codes; of unknown loaders also what is left as it is."""
    says: dict[str, Any] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": list(_BLOCK),
    }
    if form.endswith("ue8m0"):
        says["scale_fmt"] = "ue8m0"
    if isinstance(model_type, str) and _KNOWN.fullmatch(model_type):
        return says
    left = [
        n.removesuffix(".weight")
        for n, s in named.written.items()
        if n.endswith(".weight") and len(s.shape) == 2 and n not in named.terms
    ]
    return {**says, "modules_to_not_convert": left}
