"""Mixture-of-experts relatives: Mixtral, Qwen2-MoE, Qwen3-MoE.

transformers 5 stacks the experts in memory and saves them one by one (5.23, ``conversion_mapping.py``).
"""

from ckptconv.families.base import Family, Fused, Slot, one
from ckptconv.families.llama import FAMILY as LLAMA
from ckptconv.families.qwen import QWEN2, QWEN3


def _without_mlp(slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    return tuple(s for s in slots if not s.slot.startswith("layers.*.mlp."))


def _optional(slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    """Dense layers among the sparse ones: which they are, mlp_only_layers and decoder_sparse_step say."""
    return tuple(
        one(s.slot, s.name, *s.shape, optional=True) for s in slots if s.slot.startswith("layers.*.mlp.")
    )


_EXPERTS = "model.layers.*.mlp.experts"
_QWEN_SLOTS = (
    one("layers.*.moe.router", "model.layers.*.mlp.gate.weight", "experts", "hidden", optional=True),
    one(
        "layers.*.moe.experts.gate",
        f"{_EXPERTS}.{{e}}.gate_proj.weight",
        "expert_inner",
        "hidden",
        optional=True,
    ),
    one(
        "layers.*.moe.experts.up", f"{_EXPERTS}.{{e}}.up_proj.weight", "expert_inner", "hidden", optional=True
    ),
    one(
        "layers.*.moe.experts.down",
        f"{_EXPERTS}.{{e}}.down_proj.weight",
        "hidden",
        "expert_inner",
        optional=True,
    ),
)
_QWEN_FUSED = (
    Fused(
        f"{_EXPERTS}.gate_up_proj", (f"{_EXPERTS}.{{e}}.gate_proj.weight", f"{_EXPERTS}.{{e}}.up_proj.weight")
    ),
    Fused(f"{_EXPERTS}.down_proj", (f"{_EXPERTS}.{{e}}.down_proj.weight",)),
)
_SHARED = "model.layers.*.mlp.shared_expert"

QWEN3_MOE = Family(
    "qwen3_moe",
    ("qwen3_moe",),
    (*_without_mlp(QWEN3.slots), *_optional(QWEN3.slots), *_QWEN_SLOTS),
    LLAMA.flags,
    LLAMA.ignored,
    _QWEN_FUSED,
)
QWEN2_MOE = Family(
    "qwen2_moe",
    ("qwen2_moe",),
    (
        *_without_mlp(QWEN2.slots),
        *_optional(QWEN2.slots),
        *_QWEN_SLOTS,
        one(
            "layers.*.moe.shared.gate", f"{_SHARED}.gate_proj.weight", "shared_inner", "hidden", optional=True
        ),
        one("layers.*.moe.shared.up", f"{_SHARED}.up_proj.weight", "shared_inner", "hidden", optional=True),
        one(
            "layers.*.moe.shared.down", f"{_SHARED}.down_proj.weight", "hidden", "shared_inner", optional=True
        ),
        one(
            "layers.*.moe.shared.weight",
            "model.layers.*.mlp.shared_expert_gate.weight",
            "1",
            "hidden",
            optional=True,
        ),
    ),
    LLAMA.flags,
    LLAMA.ignored,
    _QWEN_FUSED,
)

# Known by how they save their experts alone; their other names and shapes pass unchecked.
OTHERS = Family(
    "experts",
    ("deepseek_v2", "deepseek_v3", "dots1", "flex_olmo", "glm4_moe", "hunyuan_v1_moe", "olmoe", "solar_open"),
    slots=(),
    flags={},
    fused=_QWEN_FUSED,
    # Tiny steps add up in it; transformers 5.23 keeps it in float32 (modeling_deepseek_v3.py).
    pinned=(r".*\.e_score_correction_bias",),
)

_MOE = "model.layers.*.block_sparse_moe"
MIXTRAL = Family(
    "mixtral",
    ("mixtral",),
    (
        *_without_mlp(LLAMA.slots),
        one("layers.*.moe.router", f"{_MOE}.gate.weight", "experts", "hidden"),
        one("layers.*.moe.experts.gate", f"{_MOE}.experts.{{e}}.w1.weight", "inner", "hidden"),
        one("layers.*.moe.experts.up", f"{_MOE}.experts.{{e}}.w3.weight", "inner", "hidden"),
        one("layers.*.moe.experts.down", f"{_MOE}.experts.{{e}}.w2.weight", "hidden", "inner"),
    ),
    LLAMA.flags,
    LLAMA.ignored,
    (
        Fused("model.layers.*.mlp.gate.weight", (f"{_MOE}.gate.weight",)),
        Fused(
            f"{_EXPERTS}.gate_up_proj", (f"{_MOE}.experts.{{e}}.w1.weight", f"{_MOE}.experts.{{e}}.w3.weight")
        ),
        Fused(f"{_EXPERTS}.down_proj", (f"{_MOE}.experts.{{e}}.w2.weight",)),
    ),
)
