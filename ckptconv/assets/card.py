"""Write a model card: what a model is, where it is from, and how its files were verified."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["CARD", "is_ours", "model_card"]

CARD = "README.md"

# By which a card that was made here is known again, and may be replaced by the next one.
_MARK = "<!-- made by ckptconv; remove this line to keep what you write -->"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
}
_MOST = 96  # characters of a value that files hold


def is_ours(card: str) -> bool:
    """Whether a card was made here, and nobody has claimed it since."""
    return _MARK in card


def model_card(
    name: str,
    config: Mapping[str, Any],
    certificate: Mapping[str, Any],
    digest: str,
    adapter: Mapping[str, Any] | None = None,
) -> str:
    """Return a model card.

    Args:
        name: The repository, ``USER/MODEL``.
        config: The content of config.json; empty where there is none.
        certificate: The content of the certificate.
        digest: SHA-256 of the certificate.
        adapter: The content of adapter_config.json, where the weights are an adapter alone.
    """
    origin = certificate.get("origin") or {}
    step = origin.get("step")
    made_of = ", ".join(_text(origin[k]) for k in ("producer", "format") if origin.get(k)) or "a checkpoint"
    rows = {
        "source": made_of + ("" if step is None else f", step {step}"),
        "architecture": ", ".join(_text(a) for a in config.get("architectures") or []),
        "dtype": _text(config.get("dtype") or config.get("torch_dtype") or ""),
        "weights": f"{certificate['result'].get('tensors', 0):,} tensors, "
        f"{certificate['result'].get('bytes', 0):,} bytes",
        "converted with": _text(certificate["tool"]),
        "verified": f"plan `{_text(certificate['plan'])}`",
        "certificate": f"`ckptconv-verify.json`, SHA-256 `{digest}`",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    return (
        f"---\n{_metadata(config, adapter)}---\n{_MARK}\n\n# {name.rpartition('/')[2]}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "Every element of the weights was compared with the checkpoint they are from. After a download\n"
        "the files are compared with the certificate by\n\n"
        f"    hf download {name} --local-dir model\n    ckptconv check model\n"
    )


def _metadata(config: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> str:
    """Return the lines between the dashes, as YAML; what is quoted is JSON, which YAML holds."""
    library = "transformers" if adapter is None else "peft"
    if "_class_name" in config:
        library = "diffusers"
    lines = [f"library_name: {library}"]
    if (base := _base_model(config, adapter)) is not None:
        lines.append(f"base_model: {json.dumps(base)}")
    names = [str(a) for a in config.get("architectures") or []]
    task = next((t for ending, t in _TASKS.items() if names and names[0].endswith(ending)), None)
    if task is not None:
        lines.append(f"pipeline_tag: {task}")
    return "\n".join([*lines, "tags:", "- ckptconv"]) + "\n"


def _base_model(config: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> str | None:
    """Return the hub id of the model that was trained on, where the files name one."""
    named = (adapter or {}).get("base_model_name_or_path") or config.get("_name_or_path")
    return named if isinstance(named, str) and _HUB_ID.fullmatch(named) else None


def _text(value: object) -> str:
    """Return a value of a file as text that stays in its cell and marks up nothing."""
    text = "".join(c if c.isprintable() else " " for c in str(value))[:_MOST]
    return (
        re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text) if not re.fullmatch(r"[\w .,+:/()-]*", text) else text
    )
