"""Models in which any language model may stand: LLaVA, InternVL, Mistral 3, Gemma 3, Kimi K2.5 and others.

transformers 5.23: each part keeps the names it has alone.
"""

from __future__ import annotations

from ckptconv.families.base import Family, FamilyPart
from ckptconv.families.larger import around_any, passing


def _whole(model_type: str, *parts: FamilyPart) -> Family:
    """Declare a model that holds a whole language model, ``model.`` and ``lm_head.`` under one name."""
    return around_any(model_type, parts=parts, body="language_model.model.", head="language_model.lm_head.")


_TOWER = passing("vision_tower.", "multi_modal_projector.")
_NEWLINE = passing("image_newline")
LLAVA = _whole("llava", *_TOWER)
LLAVA_NEXT = _whole("llava_next", *_TOWER, *_NEWLINE)
LLAVA_ONEVISION = _whole("llava_onevision", *_TOWER, *_NEWLINE)
INTERNVL = _whole("internvl", *_TOWER)
MISTRAL3 = _whole("mistral3", *_TOWER)
GEMMA3 = _whole("gemma3", *_TOWER)
PALIGEMMA = _whole("paligemma", *_TOWER)
AYA_VISION = _whole("aya_vision", *_TOWER)
LLAMA4 = _whole("llama4", *passing("vision_model.", "multi_modal_projector."))
KIMI_K25 = _whole("kimi_k25", *passing("vision_tower.", "mm_projector.", "model.mm_projector."))

_INNER = passing("model.vision_tower.", "model.multi_modal_projector.")
COHERE2_VISION = around_any("cohere2_vision", parts=_INNER)
LFM2_VL = around_any("lfm2_vl", parts=_INNER)
EXAONE4_5 = around_any("exaone4_5", parts=passing("model.visual."))
DEEPSEEK_VL = around_any("deepseek_vl", parts=passing("model.vision_model.", "model.aligner."))
_CONNECTED = passing("model.vision_model.", "model.connector.")
IDEFICS3 = around_any("idefics3", parts=_CONNECTED, body="model.text_model.")
SMOLVLM = around_any("smolvlm", parts=_CONNECTED, body="model.text_model.")
IDEFICS2 = around_any("idefics2", parts=_CONNECTED, body="model.text_model.")
OVIS2 = around_any("ovis2", parts=passing("model.vision_tower.", "model.visual_embeddings_table."))
MINICPMV4_6 = around_any("minicpmv4_6", parts=passing("model.vision_tower.", "model.merger."))
GEMMA4 = around_any(
    "gemma4",
    parts=passing("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio."),
)

# Models that hear.
_HEARING = passing("audio_tower.", "multi_modal_projector.")
QWEN2_AUDIO = _whole("qwen2_audio", *_HEARING)
VOXTRAL = _whole("voxtral", *_HEARING)
