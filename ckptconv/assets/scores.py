"""Name in config.json the class of a model that scores: critics keep that of the model they began as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ckptconv.plans.plan import Step
from ckptconv.relations import Spec

__all__ = ["as_scoring"]

_LANGUAGE = "ForCausalLM"


def as_scoring(config: Mapping[str, Any], tensors: Mapping[str, Spec]) -> tuple[dict[str, Any], list[Step]]:
    """Return a config whose class has a place for the ``score`` that is there instead of a head for tokens.

    Of transformers' classes that score, those for single tokens have a bias and those for whole texts none
    (5.23, ``modeling_layers.py``). verl trains its critics as the one, TRL its reward models as the other.

    Args:
        config: The content of config.json.
        tensors: The tensors that are written.

    Returns:
        The config, and a step for each field that changed.
    """
    names, score = config.get("architectures"), tensors.get("score.weight")
    first = str(names[0]) if isinstance(names, list) and names else ""
    if score is None or len(score.shape) != 2 or not first.endswith(_LANGUAGE) or "lm_head.weight" in tensors:
        return dict(config), []
    kind = "ForTokenClassification" if "score.bias" in tensors else "ForSequenceClassification"
    changed: dict[str, Any] = {"architectures": [first.removesuffix(_LANGUAGE) + kind]}
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or len(labels) != score.shape[0]:
        numbers = range(min(score.shape[0], 1 << 16))
        changed["id2label"] = {str(i): f"LABEL_{i}" for i in numbers}
        changed["label2id"] = {f"LABEL_{i}": i for i in numbers}
    why = f"score {list(score.shape)} stands in place of the head for tokens"
    steps = [
        Step("config", f"{k}: {json.dumps(config.get(k))} -> {json.dumps(v)[:80]}", why)
        for k, v in changed.items()
    ]
    return {**config, **changed}, steps
