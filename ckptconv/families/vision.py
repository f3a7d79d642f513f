"""Models in which any language model may stand: LLaVA, InternVL, Mistral 3, Gemma 3, Kimi K2.5 and others.

transformers 5.23: each part keeps the names it has alone.
"""

from ckptconv.families.larger import around_any, passing

_WITHIN = "language_model."
_TOWER = passing("vision_tower.", "multi_modal_projector.")
LLAVA = around_any("llava", parts=_TOWER, within=_WITHIN)
INTERNVL = around_any("internvl", parts=_TOWER, within=_WITHIN)
MISTRAL3 = around_any("mistral3", parts=_TOWER, within=_WITHIN)
GEMMA3 = around_any("gemma3", parts=_TOWER, within=_WITHIN)
AYA_VISION = around_any("aya_vision", parts=_TOWER, within=_WITHIN)
LLAVA_NEXT = around_any("llava_next", parts=(*_TOWER, *passing("image_newline")), within=_WITHIN)
LLAVA_ONEVISION = around_any("llava_onevision", parts=(*_TOWER, *passing("image_newline")), within=_WITHIN)
LLAMA4 = around_any("llama4", parts=passing("vision_model.", "multi_modal_projector."), within=_WITHIN)
KIMI_K25 = around_any(
    "kimi_k25", parts=passing("vision_tower.", "mm_projector.", "model.mm_projector."), within=_WITHIN
)
