"""Read the YAML that Megatron-Bridge and NeMo 2 leave in the place of Megatron's arguments.

Forms: Megatron-Bridge 0.6.2, ``training/utils/checkpoint_utils.py`` (``run_config.yaml``) and
``models/gpt_provider.py``; NeMo 2.3, ``lightning/io/pl.py`` (``context/model.yaml``). Nodes with ``_target_``
name Python objects: they are read as data, nothing is imported or called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.facts.facts import read_facts
from ckptconv.facts.providers import completed, known_class
from ckptconv.families import find_family
from ckptconv.families.config import against
from ckptconv.families.template import Template
from ckptconv.places.yamlfile import read_yaml
from ckptconv.plans.checkpoint import Note

__all__ = ["run_arguments"]

# The provider's word -> the training argument's.
_RENAMED: Final = {
    "scale_factor": "rope_scaling_factor",  # NeMo 2's Llama 3.1
    "low_freq_factor": "rope_scaling_low_freq_factor",
    "high_freq_factor": "rope_scaling_high_freq_factor",
    "old_context_len": "rope_scaling_original_max_position_embeddings",
    "num_moe_experts": "num_experts",
    "final_logit_softcapping": "output_logit_softcapping",
}
# What gates an activation, and what does not: the last word of the function's name.
_GATED: Final = {"silu": "swiglu", "gelu": "geglu", "fast_gelu": "gelu_tanh", "quick_gelu": "quick_geglu"}
_PLAIN: Final = {"squared_relu": "squared_relu", "openai_gelu": "openai_gelu", "fast_gelu": "openai_gelu"}
_FLAGS: Final = {*_GATED.values(), *_PLAIN.values()}
# Classes whose fields say all they compute.
_SAYS_ALL: Final = re.compile(
    r"(GPT|MLA|Llama|Mistral|Hybrid|Mamba)ModelProvider|"
    r"(GPT|Llama|CodeLlama|Mistral|Mixtral|Qwen2|Qwen3|DeepSeek|Nemotron|Phi3|Starcoder2?)\w*Config\w*"
)
# What the fields are that a file leaves out (Megatron-Bridge 0.2, models/llama/llama_provider.py).
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "LlamaModelProvider": {
        "normalization": "RMSNorm",
        "activation_func": "torch.nn.functional.silu",
        "gated_linear_unit": True,
        "position_embedding_type": "rope",
        "add_bias_linear": False,
        "share_embeddings_and_output_weights": False,
    },
}


def run_arguments(folder: Path) -> tuple[dict[str, Any], tuple[Note, ...]] | None:
    """Return a run's settings under the names of Megatron's arguments, and what to say of them.

    None without such a file. Where a class computes what neither its fields nor `ckptconv.facts.providers`
    say, the only one is ``hf_path``, the model it was made from.

    Args:
        folder: The iteration's folder, or NeMo's ``weights``.

    Raises:
        FormatError: if the file holds no model.
    """
    for path, key in (
        (folder / "run_config.yaml", "model"),
        (folder.parent / "context" / "model.yaml", "config"),
        (folder / "context" / "model.yaml", "config"),
    ):
        if not path.is_file():
            continue
        values = read_yaml(path, within=path.parent)
        model = values.get(key) if isinstance(values, dict) else None
        if not isinstance(model, dict):
            raise FormatError(f"no {key} in it", where=path, hint="give --config with a folder")
        return _read(model, path)
    return None


def _read(model: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """Return what a model's node says, if it and what is known of its class say all that is computed."""
    whose, layer = _name(model), _name(model.get("transformer_layer_spec"))
    known = known_class((whose, layer), model)
    if known is None and _SAYS_ALL.fullmatch(whose) is None:
        of = whose or "class without a name"
        text = f"{path.name} is of a {of}, whose fields do not say all that it computes"
        return _named(model), (Note("info", text),)
    model = {**_DEFAULTS.get(whose, {}), **_scaled_rotary(whose), **model}
    arguments = _arguments(model)
    if known is not None:
        arguments = completed(known, model, arguments)
        if left := _left(known.model_type, arguments):
            text = f"{path.name} is of a {known.model_type}, but {'; '.join(left)}"
            return _named(model), (Note("info", text),)
    more = "" if known is None else known.said(model) if callable(known.said) else known.said
    notes = (Note("info", f"the model is what {path.name} says"),)
    return arguments, (*notes, Note("warning", more)) if more else notes


def _named(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model it was made from, if that is all that can be said."""
    own = model.get("hf_model_id")
    return {"hf_path": own} if isinstance(own, str) else {}


def _name(node: Any) -> str:
    """Return the last word of what a node stands for."""
    return str(node.get("_target_", "")).rpartition(".")[2] if isinstance(node, Mapping) else ""


def _left(model_type: str, arguments: Mapping[str, Any]) -> list[str]:
    """Say what arguments change that the architecture does not compute, and config.json does not say."""
    family = find_family(model_type)
    own = family.language or family if family is not None else None
    if own is None:
        return []
    beside: Mapping[str, Any] = arguments.get("hf_config") or {}
    facts = {n: f for n, f in read_facts(arguments).items() if n != "hf_config"}
    return against(facts, own, own.template or Template("", {}), beside)


def _arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    found = {_RENAMED.get(key, key): _data(value) for key, value in model.items()}
    gated = bool(model.get("gated_linear_unit"))
    word = str(_data(model.get("activation_func")) or "gelu").rpartition(".")[2]
    found |= dict.fromkeys(_FLAGS, False)
    found["bias_gelu_fusion"] = False  # a provider's gelu is the function it names
    if (flag := (_GATED if gated else _PLAIN).get(word)) is not None:
        found[flag] = True
    elif word != "gelu":
        found["hidden_act"] = word
    if isinstance(own := model.get("hf_model_id"), str):
        found["hf_path"] = own
    if isinstance(shared := model.get("share_embeddings_and_output_weights"), bool):
        found["untie_embeddings_and_output_weights"] = not shared
    found.setdefault("max_position_embeddings", model.get("seq_length"))
    found["group_query_attention"] = model.get("num_query_groups") is not None
    if model.get("num_query_groups") is None:
        found["num_query_groups"] = model.get("num_attention_heads")
    if model.get("rope_scaling") is True or model.get("scale_factor") is not None:
        found["use_rope_scaling"] = True
    if isinstance(size := model.get("window_size"), int) and not isinstance(size, bool):
        found["window_size"] = None
        found["sliding_window"] = size
    return found


def _data(value: Any) -> Any:
    """Return what a node says: the name of what it stands for, as far as that is data."""
    if isinstance(value, Mapping) and "_target_" in value:
        return value.get("_name_") or value["_target_"]
    return value


def _scaled_rotary(whose: str) -> dict[str, Any]:
    """Return how a class of NeMo 2 (2.3, ``llama.py``) scales rotary embedding where no field says it."""
    match = re.match(r"Llama3([12])\w*Config", whose)
    if match is None:
        return {}
    factor = 8.0 if match[1] == "1" else 32.0
    return {"scale_factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "old_context_len": 8192}
