"""Know the factors of LoRA adapters among a rank's tensors, and the weights they belong to.

Names: peft 0.21, ``tuners/lora/layer.py``; MindSpeed-LLM c77308a1,
``mindspeed_llm/tasks/checkpoint/convert_mg2hf.py`` (``_merge_lora``); Megatron-Bridge 0.6.2 and NeMo 2.3,
``peft/utils.py`` (``ParallelLinearAdapter``: ``adapter.linear_in`` is A, ``adapter.linear_out`` B);
mindformers 2.1, ``pynative/pet``, and its ``mindpet``, whose factors have no ``.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from ckptconv.dialects.stacked import turned
from ckptconv.errors import PlanError
from ckptconv.parallel import Cut
from ckptconv.records import dataclass
from ckptconv.relations import Relation, Spec

__all__ = [
    "Factor",
    "factor_cut",
    "factor_of",
    "is_beyond_lora",
    "is_gate_told",
    "own_name",
    "unpack_factor",
    "weight_of_factor",
    "with_implied",
    "without_weights",
]

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>[ABab])(?:\.(?!weight\d*$)(?P<adapter>[^.]+))?\.(?P<leaf>weight\d*)"
)
_BRIDGE = re.compile(r"(?P<module>.+)\.adapter\.linear_(?P<part>in|out)\.(?P<leaf>weight)")
# Magnitudes of DoRA, and adapters of each matrix that a module fuses (``dora.py``, ``canonical_lora.py``).
_BEYOND = re.compile(r".+\.(linear_\w+\.adapter|lora_magnitude_vector)\..+")
_BARE = re.compile(r"(?P<module>.+)\.(?:mindpet_delta_|tk_delta_)?lora_(?P<part>[ab])")
_TOGETHER = re.compile(r"(?P<stem>.*\.mlp\.)experts\.weight(?P<which>[12])_lora_(?P<part>[ab])")


@dataclass(frozen=True, slots=True)
class Factor:
    """Name one factor of an adapter.

    Attributes:
        weight: The weight it belongs to.
        part: ``A`` (``[r, in]``) or ``B`` (``[out, r]``).
        adapter: The adapter's own name, or empty.
    """

    weight: str
    part: Literal["A", "B"]
    adapter: str = ""

    def name(self, weight: str | None = None) -> str:
        """Return the factor's name, if asked for that of another weight."""
        module, _, leaf = (weight or self.weight).rpartition(".")
        own = f".{self.adapter}" if self.adapter else ""
        return f"{module}.lora_{self.part}{own}.{leaf}"


def factor_of(name: str) -> Factor | None:
    """Tell what a tensor is a factor of; None if it is none."""
    if "lora_" not in name and ".adapter." not in name:
        return None
    if (match := _BRIDGE.fullmatch(name)) is not None:
        return Factor(f"{match['module']}.{match['leaf']}", "A" if match["part"] == "in" else "B")
    if (bare := _BARE.fullmatch(name)) is not None:
        return Factor(f"{bare['module']}.weight", "A" if bare["part"] == "a" else "B")
    match = _FACTOR.fullmatch(name)
    if match is None:
        return None
    part: Literal["A", "B"] = "A" if match["part"] in "aA" else "B"
    return Factor(f"{match['module']}.{match['leaf']}", part, match["adapter"] or "")


def is_beyond_lora(name: str) -> bool:
    """Whether a tensor is of an adapter that is more than one low-rank product for its module."""
    return factor_of(name) is None and _BEYOND.fullmatch(name) is not None


def weight_of_factor(name: str) -> str | None:
    """Return the weight a factor belongs to, be it of all experts together; None if a tensor is none."""
    if (match := _TOGETHER.fullmatch(name)) is not None:
        return f"{match['stem']}experts.weight{match['which']}"
    factor = factor_of(name)
    return None if factor is None else factor.weight


def own_name(name: str) -> str:
    """Return a tensor's name without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def factor_cut(cut: Cut, part: str) -> Cut:
    """Return how a factor is cut whose weight is cut like this.

    ``B`` of a column-parallel module is cut as its weight, ``A`` of a row-parallel one along its columns; the
    others are whole on every rank (MindSpeed-LLM c77308a1, ``tasks/posttrain/lora/lora_moe.py``).
    """
    return cut if cut.axis == {"A": 1, "B": 0}[part] else Cut()


def with_implied(tensors: Mapping[str, Spec]) -> dict[str, Spec]:
    """Add the weights of adapters that are saved without them, as their factors tell the shapes."""
    found: dict[str, dict[str, Spec]] = {}
    for name, spec in tensors.items():
        if (factor := factor_of(name)) is not None and len(spec.shape) == 2:
            found.setdefault(factor.weight, {})[factor.part] = spec
    implied = {
        weight: Spec((parts["B"].shape[0], parts["A"].shape[1]), parts["B"].dtype)
        for weight, parts in found.items()
        if weight not in tensors and len(parts) == 2
    }
    return {**tensors, **implied}


def without_weights(tensors: Iterable[str]) -> bool:
    """Whether the layers hold factors of adapters and nothing else."""
    layered = [n for n in tensors if ".layers." in n]
    return bool(layered) and all(factor_of(n) is not None or _TOGETHER.fullmatch(n) for n in layered)


def is_gate_told(tensors: Mapping[str, Spec]) -> bool:
    """Whether the weights of dense MLPs tell if there is a gate: both are there, or neither."""
    ups = [n for n in tensors if re.search(r"\.mlp\.(linear_fc1|dense_h_to_4h)\.weight$", n)]
    downs = [n for n in tensors if re.search(r"\.mlp\.(linear_fc2|dense_4h_to_h)\.weight$", n)]
    return not ups or bool(downs)


def unpack_factor(where: str, name: str, tensors: Mapping[str, Spec]) -> Relation | None:
    """Relate a factor of a rank's experts in one tensor to factors one by one; None if it is none.

    The memory of ``weight1_lora_a`` is ``[experts, hidden, r]`` and that of ``weight1_lora_b`` ``[experts, r,
    inner]``; each expert's is the transpose of a linear layer's factor (MindSpeed-LLM c77308a1,
    ``mindspeed_llm/tasks/posttrain/lora/moe/experts.py``).

    Args:
        where: Name of the left side.
        name: Name of the tensor.
        tensors: What else the rank holds.

    Raises:
        PlanError: if the other factor is not there, or both do not fit together.
    """
    match = _TOGETHER.fullmatch(name)
    if match is None:
        return None
    base = f"{match['stem']}experts.weight{match['which']}"
    a, b = (tensors.get(f"{base}_lora_{part}") for part in "ab")
    if a is None or b is None:
        raise PlanError(f"{name} is there without its other factor", hint="copy the checkpoint again")
    # a1 [hidden, r * experts], b1 [r, experts * inner]; a2 [experts * inner, r], b2 [experts * r, hidden]
    rank = b.shape[0] if match["which"] == "1" else a.shape[1]
    stacked = a.shape[1] if match["which"] == "1" else b.shape[0]
    count = stacked // rank if rank else 0
    spec = tensors[name]
    if not count or stacked % rank or spec.numel % (count * rank):
        raise PlanError(
            f"{base}_lora_a {list(a.shape)} and {base}_lora_b {list(b.shape)} are not of the same rank",
            hint="merge the adapter with the tool that trained it",
        )
    other = spec.numel // (count * rank)
    rows, columns = (other, rank) if match["part"] == "a" else (rank, other)
    part: Literal["A", "B"] = "A" if match["part"] == "a" else "B"
    weights = [f"{match['stem']}experts.linear_fc{match['which']}.weight{e}" for e in range(count)]
    # The other layers' factors carry the adapter's name, those of experts do not: it is one adapter.
    others = (f.adapter for n in tensors if (f := factor_of(n)) is not None)
    own = next(others, "")
    return turned(where, spec, [f"{where}:{Factor(w, part, own).name()}" for w in weights], rows, columns)
