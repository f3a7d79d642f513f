"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and GLM-4V as they see, and the thinkers of Qwen's omni models.

transformers 5.23, ``conversion_mapping.py``: files of the older ones have the language model at ``model.``.
"""

from dataclasses import replace

from ckptconv.families.glm4 import GLM4
from ckptconv.families.glm4_moe import FAMILY as GLM4_MOE
from ckptconv.families.larger import larger, passing
from ckptconv.families.moe import QWEN3_MOE
from ckptconv.families.qwen import QWEN2, QWEN3
from ckptconv.families.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from ckptconv.slots import concat, one, stacked, transposed

_BODY = "model.language_model."
_SEEING, _HEARING = passing("visual."), passing("audio_tower.", "visual.")
QWEN2_VL = larger(QWEN2, "qwen2_vl", parts=_SEEING)
QWEN2_5_VL = larger(QWEN2, "qwen2_5_vl", parts=_SEEING)
QWEN2_5_OMNI = larger(QWEN2, "qwen2_5_omni_thinker", parts=_HEARING)
QWEN3_OMNI = larger(QWEN3_MOE, "qwen3_omni_moe_thinker", parts=_HEARING)
QWEN3_VL = larger(QWEN3, "qwen3_vl", parts=passing("model.visual."), body=_BODY)
QWEN3_5_VL = larger(QWEN3_5, "qwen3_5", parts=passing("model.visual."), body=_BODY)
QWEN3_5_MOE_VL = larger(QWEN3_5_MOE, "qwen3_5_moe", parts=passing("model.visual."), body=_BODY)
# Heads are not 128 wide unless the config says so (transformers 5.23, ``configuration_glm4v.py``).
_GLM4 = replace(GLM4, flags={k: v for k, v in GLM4.flags.items() if k != "head_dim"})
GLM4V = larger(_GLM4, "glm4v", parts=passing("model.visual."), body=_BODY)
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
    parts=passing("model.visual."),
    body=_BODY,
)
