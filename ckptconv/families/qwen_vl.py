"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and GLM-4V as they see, and the thinkers of Qwen's omni models.

transformers 5.23, ``conversion_mapping.py``: files of the older ones have the language model at ``model.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ckptconv.families.base import Config, FamilyPart
from ckptconv.families.glm4 import GLM4
from ckptconv.families.glm4_moe import FAMILY as GLM4_MOE
from ckptconv.families.larger import larger, passing
from ckptconv.families.moe import QWEN3_MOE
from ckptconv.families.qwen import QWEN2, QWEN3
from ckptconv.families.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from ckptconv.slots import Entry, concat, linear, one, stacked, transposed

_BODY = "model.language_model."


def _vision_sizes(config: Config) -> Mapping[str, int]:
    vision = config.get("vision_config")
    said = vision if isinstance(vision, Mapping) else {}

    def size(key: str, default: int, *older: str) -> int:
        return next((v for k in (key, *older) if isinstance(v := said.get(k), int)), default)

    hidden, heads = size("hidden_size", 1152), size("num_heads", 16)
    return {
        "hidden": hidden,
        "layers": size("depth", 27),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads if heads else 0,
        "inner": size("intermediate_size", 4304),
        "merged": hidden * size("spatial_merge_size", 2) ** 2,
        "out": size("out_hidden_size", 3584),
        "channels": size("in_channels", 3, "in_chans"),
        "temporal": size("temporal_patch_size", 2),
        "patch": size("patch_size", 16),
        "positions": size("num_position_embeddings", 2304),
    }


def _vision_sizes_2_5(config: Config) -> Mapping[str, int]:
    """Return Qwen2.5-VL's, with what its config assumes (``configuration_qwen2_5_vl.py``)."""
    vision = config.get("vision_config")
    assumed = {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "patch_size": 14}
    said = vision if isinstance(vision, Mapping) else {}
    return _vision_sizes({"vision_config": {**assumed, **said}})


def _vision_sizes_2(config: Config) -> Mapping[str, int]:
    """Return Qwen2-VL's, whose ``hidden_size`` is what the merger gives (``configuration_qwen2_vl.py``)."""
    vision = config.get("vision_config")
    assumed = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "patch_size": 14}
    said = {**assumed, **(vision if isinstance(vision, Mapping) else {})}
    width, ratio = said["embed_dim"], said["mlp_ratio"]
    inner = int(width * ratio) if isinstance(width, int) and isinstance(ratio, int | float) else None
    renamed = {"hidden_size": width, "intermediate_size": inner, "out_hidden_size": said["hidden_size"]}
    return _vision_sizes({"vision_config": {**said, **renamed}})


def _merger(slot: str, module: str) -> tuple[Entry, ...]:
    return (
        *linear(f"{slot}.norm", f"{module}.norm", bias=True),
        *linear(f"{slot}.up", f"{module}.linear_fc1", bias=True),
        *linear(f"{slot}.down", f"{module}.linear_fc2", bias=True),
    )


_QKV = concat(*(f"layers.*.attn.{part}" for part in "qkv"))
_MERGERS = range(32)
_VISION = (
    FamilyPart(
        "model.visual.",
        "vision_model.",
        entries=(
            *linear("patch", "patch_embed.proj", bias=True),
            one("pos", "pos_embed.weight"),
            *linear("layers.*.attn_norm", "blocks.*.norm1", bias=True),
            *linear(_QKV, "blocks.*.attn.qkv", bias=True),
            *linear("layers.*.attn.o", "blocks.*.attn.proj", bias=True),
            *linear("layers.*.mlp_norm", "blocks.*.norm2", bias=True),
            *linear("layers.*.mlp.up", "blocks.*.mlp.linear_fc1", bias=True),
            *linear("layers.*.mlp.down", "blocks.*.mlp.linear_fc2", bias=True),
            *(e for n in _MERGERS for e in _merger(f"deepstack.{n}", f"deepstack_merger_list.{n}")),
            *_merger("merger", "merger"),
        ),
        sizes=_vision_sizes,
        kept=("visual.",),
        slots={
            "patch": "hidden,channels,temporal,patch,patch",
            "pos": "positions,hidden",
            "merger.norm": "hidden",
            **{f"deepstack.{n}.norm": "merged" for n in _MERGERS},
            **{
                f"{slot}.{part}": axes
                for slot in ("merger", *(f"deepstack.{n}" for n in _MERGERS))
                for part, axes in (("up", "merged,merged"), ("down", "out,merged"))
            },
        },
    ),
)
# Qwen2.5-VL: a gate in the MLP, no biases in norms; Megatron-Bridge keeps the names behind ``visual.``.
_VISION_2_5 = (
    FamilyPart(
        "visual.",
        "vision_model.",
        entries=(
            one("patch", "patch_embed.proj.weight"),
            one("layers.*.attn_norm", "blocks.*.norm1.weight"),
            *linear(_QKV, "blocks.*.attn.qkv", bias=True),
            *linear("layers.*.attn.o", "blocks.*.attn.proj", bias=True),
            one("layers.*.mlp_norm", "blocks.*.norm2.weight"),
            *(
                entry
                for slot in ("gate", "up", "down")
                for entry in linear(f"layers.*.mlp.{slot}", f"blocks.*.mlp.{slot}_proj", bias=True)
            ),
            one("merger.norm", "merger.ln_q.weight"),
            *linear("merger.up", "merger.mlp.0", bias=True),
            *linear("merger.down", "merger.mlp.2", bias=True),
        ),
        sizes=_vision_sizes_2_5,
        kept=("visual.",),
        slots={
            "patch": "hidden,channels,temporal,patch,patch",
            "merger.norm": "hidden",
            "merger.up": "merged,merged",
            "merger.down": "out,merged",
        },
    ),
)
# Qwen2-VL: no gate in the MLP, layer norms.
_VISION_2 = (
    FamilyPart(
        "visual.",
        "vision_model.",
        entries=(
            one("patch", "patch_embed.proj.weight"),
            *linear("layers.*.attn_norm", "blocks.*.norm1", bias=True),
            *linear(_QKV, "blocks.*.attn.qkv", bias=True),
            *linear("layers.*.attn.o", "blocks.*.attn.proj", bias=True),
            *linear("layers.*.mlp_norm", "blocks.*.norm2", bias=True),
            *linear("layers.*.mlp.up", "blocks.*.mlp.fc1", bias=True),
            *linear("layers.*.mlp.down", "blocks.*.mlp.fc2", bias=True),
            *linear("merger.norm", "merger.ln_q", bias=True),
            *linear("merger.up", "merger.mlp.0", bias=True),
            *linear("merger.down", "merger.mlp.2", bias=True),
        ),
        sizes=_vision_sizes_2,
        kept=("visual.",),
        slots=_VISION_2_5[0].slots,
    ),
)
_HEARING = passing("audio_tower.", "visual.")
QWEN2_VL = larger(QWEN2, "qwen2_vl", parts=_VISION_2)
QWEN2_5_VL = larger(QWEN2, "qwen2_5_vl", parts=_VISION_2_5)
QWEN2_5_OMNI = larger(QWEN2, "qwen2_5_omni_thinker", parts=_HEARING)
QWEN3_OMNI = larger(QWEN3_MOE, "qwen3_omni_moe_thinker", parts=_HEARING)
QWEN3_VL = larger(QWEN3, "qwen3_vl", parts=_VISION, body=_BODY)
QWEN3_5_VL = larger(QWEN3_5, "qwen3_5", parts=_VISION, body=_BODY)
QWEN3_5_MOE_VL = larger(QWEN3_5_MOE, "qwen3_5_moe", parts=_VISION, body=_BODY)
# Heads are not 128 wide unless the config says so (transformers 5.23, ``configuration_glm4v.py``).
_GLM4 = replace(GLM4, flags={k: v for k, v in GLM4.flags.items() if k != "head_dim"})
GLM4V = larger(_GLM4, "glm4v", parts=passing("model.visual."), body=_BODY)
GLM46V = larger(_GLM4, "glm46v", parts=passing("model.visual."), body=_BODY)
GLM4V_MOE = larger(GLM4_MOE, "glm4v_moe", parts=passing("model.visual."), body=_BODY)

_E = "layers.*.moe.experts.{e}"
_GATE_UP, _DOWN = concat(f"{_E}.gate", f"{_E}.up"), f"{_E}.down"
_X = "model.layers.*.mlp.experts"
# Its experts stay together: as transformers saves them, or input first as they were published.
_TOGETHER = (
    one(stacked(_GATE_UP), f"{_X}.gate_up_proj"),
    one(stacked(_DOWN), f"{_X}.down_proj"),
    one(stacked(transposed(_GATE_UP)), f"{_X}.gate_up_proj"),
    one(stacked(transposed(_DOWN)), f"{_X}.down_proj"),
)
QWEN3_VL_MOE = larger(
    replace(QWEN3_MOE, entries=(*(e for e in QWEN3_MOE.entries if "{e}" not in e.name), *_TOGETHER)),
    "qwen3_vl_moe",
    parts=_VISION,
    body=_BODY,
)
