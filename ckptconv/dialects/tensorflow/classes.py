"""List the classes of transformers that had a TensorFlow form, by model type.

Of transformers 4.57.6, the last release with them. Not here are encoder-decoders made of two models (RAG
among them) and Transformer-XL, which name their variables in ways of their own.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["class_of", "scope_of"]

# The class's name up to its task, and the tasks.
_CLASSES: Final[dict[str, str]] = {
    "albert": (
        "Albert ForMaskedLM ForMultipleChoice ForPreTraining ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification Model"
    ),
    "bart": "Bart ForConditionalGeneration ForSequenceClassification Model",
    "bert": (
        "Bert ForMaskedLM ForMultipleChoice ForNextSentencePrediction ForPreTraining "
        "ForQuestionAnswering ForSequenceClassification ForTokenClassification LMHeadModel Model"
    ),
    "blenderbot": "Blenderbot ForConditionalGeneration Model",
    "blenderbot-small": "BlenderbotSmall ForConditionalGeneration Model",
    "blip": "Blip ForConditionalGeneration ForImageTextRetrieval ForQuestionAnswering Model",
    "blip_text_model": "BlipText LMHeadModel Model",
    "blip_vision_model": "BlipVision Model",
    "camembert": (
        "Camembert ForCausalLM ForMaskedLM ForMultipleChoice ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification Model"
    ),
    "clip": "CLIP Model",
    "clip_text_model": "CLIPText Model",
    "clip_vision_model": "CLIPVision Model",
    "convbert": (
        "ConvBert ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification "
        "ForTokenClassification Model"
    ),
    "convnext": "ConvNext ForImageClassification Model",
    "convnextv2": "ConvNextV2 ForImageClassification Model",
    "ctrl": "CTRL ForSequenceClassification LMHeadModel Model",
    "cvt": "Cvt ForImageClassification Model",
    "data2vec-vision": "Data2VecVision ForImageClassification ForSemanticSegmentation Model",
    "deberta": (
        "Deberta ForMaskedLM ForQuestionAnswering ForSequenceClassification ForTokenClassification Model"
    ),
    "deberta-v2": (
        "DebertaV2 ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification "
        "ForTokenClassification Model"
    ),
    "deit": "DeiT ForImageClassification ForImageClassificationWithTeacher ForMaskedImageModeling Model",
    "distilbert": (
        "DistilBert ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification "
        "ForTokenClassification Model"
    ),
    "dpr": "DPR ContextEncoder QuestionEncoder Reader",
    "efficientformer": "EfficientFormer ForImageClassification ForImageClassificationWithTeacher Model",
    "electra": (
        "Electra ForMaskedLM ForMultipleChoice ForPreTraining ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification Model"
    ),
    "esm": "Esm ForMaskedLM ForSequenceClassification ForTokenClassification Model",
    "flaubert": (
        "Flaubert ForMultipleChoice ForQuestionAnsweringSimple ForSequenceClassification "
        "ForTokenClassification Model WithLMHeadModel"
    ),
    "funnel": (
        "Funnel BaseModel ForMaskedLM ForMultipleChoice ForPreTraining ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification Model"
    ),
    "gpt2": "GPT2 DoubleHeadsModel ForSequenceClassification LMHeadModel Model",
    "gptj": "GPTJ ForCausalLM ForQuestionAnswering ForSequenceClassification Model",
    "groupvit": "GroupViT Model",
    "groupvit_text_model": "GroupViTText Model",
    "groupvit_vision_model": "GroupViTVision Model",
    "hubert": "Hubert ForCTC Model",
    "idefics": "Idefics ForVisionText2Text Model",
    "layoutlm": (
        "LayoutLM ForMaskedLM ForQuestionAnswering ForSequenceClassification ForTokenClassification Model"
    ),
    "layoutlmv3": ("LayoutLMv3 ForQuestionAnswering ForSequenceClassification ForTokenClassification Model"),
    "led": "LED ForConditionalGeneration Model",
    "longformer": (
        "Longformer ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification "
        "ForTokenClassification Model"
    ),
    "lxmert": "Lxmert ForPreTraining Model",
    "marian": "MarianM TModel odel",
    "mbart": "MBart ForConditionalGeneration Model",
    "mistral": "Mistral ForCausalLM ForSequenceClassification Model",
    "mobilebert": (
        "MobileBert ForMaskedLM ForMultipleChoice ForNextSentencePrediction ForPreTraining "
        "ForQuestionAnswering ForSequenceClassification ForTokenClassification Model"
    ),
    "mobilevit": "MobileViT ForImageClassification ForSemanticSegmentation Model",
    "mpnet": (
        "MPNet ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification "
        "ForTokenClassification Model"
    ),
    "mt5": "MT5 EncoderModel ForConditionalGeneration Model",
    "openai-gpt": "OpenAIGPT DoubleHeadsModel ForSequenceClassification LMHeadModel Model",
    "opt": "OPT ForCausalLM Model",
    "pegasus": "Pegasus ForConditionalGeneration Model",
    "regnet": "RegNet ForImageClassification Model",
    "rembert": (
        "RemBert ForCausalLM ForMaskedLM ForMultipleChoice ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification Model"
    ),
    "resnet": "ResNet ForImageClassification Model",
    "roberta": (
        "Roberta ForCausalLM ForMaskedLM ForMultipleChoice ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification Model"
    ),
    "roberta-prelayernorm": (
        "RobertaPreLayerNorm ForCausalLM ForMaskedLM ForMultipleChoice ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification Model"
    ),
    "roformer": (
        "RoFormer ForCausalLM ForMaskedLM ForMultipleChoice ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification Model"
    ),
    "sam": "Sam Model",
    "sam_vision_model": "SamVision Model",
    "segformer": "Segformer ForImageClassification ForSemanticSegmentation Model",
    "speech_to_text": "Speech2Text ForConditionalGeneration Model",
    "swiftformer": "SwiftFormer ForImageClassification Model",
    "swin": "Swin ForImageClassification ForMaskedImageModeling Model",
    "t5": "T5 EncoderModel ForConditionalGeneration Model",
    "tapas": "Tapas ForMaskedLM ForQuestionAnswering ForSequenceClassification Model",
    "vit": "ViT ForImageClassification Model",
    "vit_mae": "ViTMAE ForPreTraining Model",
    "wav2vec2": "Wav2Vec2 ForCTC ForSequenceClassification Model",
    "whisper": "Whisper ForConditionalGeneration Model",
    "xglm": "XGLM ForCausalLM Model",
    "xlm": (
        "XLM ForMultipleChoice ForQuestionAnsweringSimple ForSequenceClassification "
        "ForTokenClassification Model WithLMHeadModel"
    ),
    "xlm-roberta": (
        "XLMRoberta ForCausalLM ForMaskedLM ForMultipleChoice ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification Model"
    ),
    "xlnet": (
        "XLNet ForMultipleChoice ForQuestionAnsweringSimple ForSequenceClassification "
        "ForTokenClassification LMHeadModel Model"
    ),
}


def scope_of(architecture: str) -> str:
    """Return the scope of a model's variables: its TF class's name in snake case.

    As tf_keras 2.21 makes it (``utils/generic_utils.py``, ``to_snake_case``).
    """
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", f"TF{architecture}")
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def class_of(scope: str) -> tuple[str, str]:
    """Return model type and torch class of a scope; empty where it is none of those known."""
    bare = re.sub(r"_\d+$", "", scope)  # a process that made several models counts them
    return _BY_SCOPE.get(bare, ("", ""))


_BY_SCOPE: Final = {
    scope_of(stem + task): (kind, stem + task)
    for kind, (stem, *tasks) in ((kind, names.split()) for kind, names in _CLASSES.items())
    for task in tasks
}
