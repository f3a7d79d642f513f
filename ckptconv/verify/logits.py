"""Run a model on a short prompt with transformers, and compare with a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.places.jsonfile import read_json
from ckptconv.verify.result import Logits, Mismatch

__all__ = ["run_model"]

_PROMPT = "The capital of France is"
_IDS = (1, 5, 9, 2, 7, 3, 11, 4)
# Of the largest logit of the reference: what an order of sums and, of 16 bits, rounding may change.
_TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


def run_model(folder: Path, reference: Path | None = None) -> tuple[Logits, list[Mismatch]]:
    """Load a model with transformers, and run a prompt of a few tokens.

    No code of the folder is run (``trust_remote_code`` is off), and the hub is not asked.

    Args:
        folder: The model.
        reference: A model to compare logits with, given the same tokens.

    Returns:
        How it ran, or why it did not; and names missing or unexpected, shapes that do not fit, values that
        are not finite, and logits that are further from the reference's than the types explain.
    """
    try:
        return _run(folder, reference)
    except CkptconvError as e:
        return Logits(error=e), []


def _run(folder: Path, reference: Path | None) -> tuple[Logits, list[Mismatch]]:
    model, info = _load(folder)
    wrong = [Mismatch("logits", str(n), "transformers misses it") for n in sorted(info["missing_keys"])]
    wrong += [
        Mismatch("logits", str(n), "transformers does not know it") for n in sorted(info["unexpected_keys"])
    ]
    wrong += [
        Mismatch("logits", str(n), "has another shape than transformers' model")
        for n in info["mismatched_keys"]
    ]
    prompt = _prompt(folder, model.config)
    found = _logits(model, prompt)
    dtype = str(model.dtype).removeprefix("torch.")
    del model
    if bad := int((~found.isfinite()).sum()):
        wrong.append(Mismatch("logits", "", f"{bad} of {found.numel()} logits are not finite", count=bad))
    if reference is None:
        return Logits(prompt, dtype), wrong
    other, _ = _load(reference)
    wanted = _logits(other, prompt)
    if wanted.shape != found.shape:
        text = f"logits of shape {list(found.shape)}, the reference's {list(wanted.shape)}"
        return Logits(prompt, dtype), [*wrong, Mismatch("logits", "", text)]
    largest = float((found - wanted).abs().max())
    share = max(_TOLERANCE.get(t, 1e-1) for t in (dtype, str(other.dtype).removeprefix("torch.")))
    tolerance = share * max(1.0, float(wanted.abs().max()))
    if not largest <= tolerance:
        text = f"logits differ from the reference's by {largest:.3g}, more than {tolerance:.3g}"
        wrong.append(Mismatch("logits", "", text, largest=largest))
    return Logits(prompt, dtype, largest, tolerance), wrong


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder),
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            torch_dtype="auto",
        )
    except Exception as e:  # transformers raises every kind here
        code = _code(folder)
        why = f"its code ({code}) is no part of transformers" if code else f"{type(e).__name__}: {_line(e)}"
        raise CkptconvError(
            f"no logits: transformers cannot load the model: {why}",
            where=folder,
            hint="leave --logits out; code of a model's folder is never run" if code else None,
        ) from e
    return model.eval(), info


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")


def _code(folder: Path) -> str | None:
    """Return the class that config.json says is made by code of its own (``auto_map``), if it does."""
    try:
        found = read_json(folder / "config.json")["auto_map"]
        return next((str(found[k]) for k in ("AutoModelForCausalLM", "AutoModel") if k in found), None)
    except (CkptconvError, OSError, LookupError, TypeError):
        return None


def _prompt(folder: Path, config: Any) -> tuple[int, ...]:
    """Return the tokens of the prompt, or fixed ones where the tokenizer does not load or goes too far."""
    rows = int(getattr(config.get_text_config(), "vocab_size", 0) or 2)
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        ids = tuple(int(i) for i in tokenizer(_PROMPT)["input_ids"])
    except Exception:  # there is none, or one that needs code
        ids = ()
    return ids if ids and max(ids) < rows else tuple(i % rows for i in _IDS)


def _logits(model: Any, prompt: tuple[int, ...]) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt])).logits.float()
