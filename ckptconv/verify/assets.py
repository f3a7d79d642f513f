"""Check what stands beside a model's weights: config.json and tokenizer.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import FormatError, PlanError
from ckptconv.facts.typed import typed_config
from ckptconv.families import Family, family_of
from ckptconv.places.jsonfile import read_json
from ckptconv.relations import Spec
from ckptconv.verify.result import Mismatch

__all__ = ["check_assets"]

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"


def check_assets(
    folder: Path,
    tensors: Mapping[str, Spec],
    *,
    aliases: Collection[str] = (),
    family: Family | None = None,
) -> tuple[list[Mismatch], list[tuple[str, str]]]:
    """Compare a model's config and tokenizer with its weights.

    Args:
        folder: Where they lie.
        tensors: Shape and dtype of the weights that are there.
        aliases: Further names of theirs.
        family: The architecture, if it is not to be found by the config's ``model_type``.

    Returns:
        What contradicts the weights, and notes as ``(level, text)``.
    """
    if not (folder / _CONFIG).is_file():
        return [], [("warning", f"there is no {_CONFIG}: the weights alone were compared")]
    config = _json(folder / _CONFIG)
    if not isinstance(config, dict):
        return [Mismatch("asset", _CONFIG, "is not a JSON object")], []
    try:
        config = typed_config(config, folder / _CONFIG, only=("model_type",))
        family = family or family_of(config)
        config = typed_config(config, folder / _CONFIG) if family is not None and family.entries else config
    except FormatError as e:
        return [Mismatch("asset", _CONFIG, f"says that {e.message}")], []
    wrong: list[Mismatch] = []
    notes: list[tuple[str, str]] = []
    if family is not None and family.entries:
        shapes = {n: s.shape for n, s in tensors.items()}
        try:
            findings = family.compare(config, shapes, aliases)
            headless = {family.name_of("head")} if _scores(config) else set()
            if missing := [n for n in findings.missing if n not in headless]:
                text = ", ".join(missing[:4])
                notes.append(("warning", f"{len(missing)} parameters of {family.name} are not there: {text}"))
        except PlanError as e:
            wrong.append(Mismatch("asset", _CONFIG, e.message))
        wrong += [] if _scores(config) else _tied(config, family, {*tensors, *aliases})
    else:
        kind = config.get("model_type")
        notes.append(
            ("info", f"no table for model_type {kind!r}: names and shapes were not checked against it")
        )
        wrong += _vocabulary(config, _rows(family, tensors))
    wrong += _dtype(config, tensors)
    if (folder / _TOKENIZER).is_file() and (rows := _rows(family, tensors)) is not None:
        sizes = _tokens(_json(folder / _TOKENIZER))
        if sizes is None:
            wrong.append(Mismatch("asset", _TOKENIZER, "is not a tokenizer"))
        elif sizes[0] > rows:
            wrong.append(
                Mismatch("asset", _TOKENIZER, f"has {sizes[0]} tokens, the embedding only {rows} rows")
            )
        elif sizes[1] > rows:
            notes.append(
                ("warning", f"{_TOKENIZER} adds tokens up to {sizes[1] - 1}, the embedding has {rows} rows")
            )
    return wrong, notes


def _scores(config: Mapping[str, Any]) -> bool:
    """Whether the model is of a class that has a score in place of a head for tokens."""
    names = config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).endswith("Classification")


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except FormatError:
        return None


def _tied(config: Mapping[str, Any], family: Family, tensors: Collection[str]) -> Iterator[Mismatch]:
    head, embed = family.name_of("head"), family.name_of("embed")
    if head is None or embed not in tensors:
        return
    if family.tied(config) and head in tensors:
        text = f"ties the output head to the embedding, but {head} is stored"
    elif not family.tied(config) and head not in tensors:
        text = f"does not tie the output head to the embedding, but {head} is not stored"
    else:
        return
    yield Mismatch("asset", _CONFIG, text)


def _dtype(config: Mapping[str, Any], tensors: Mapping[str, Spec]) -> Iterator[Mismatch]:
    says = config.get("dtype", config.get("torch_dtype"))
    held = Counter[str]()
    for spec in tensors.values():
        if dtype_named(spec.dtype).kind == "float":
            held[spec.dtype] += spec.numel
    if says is not None and held and str(says).removeprefix("torch.") != held.most_common(1)[0][0]:
        yield Mismatch("asset", _CONFIG, f"says dtype {says}, most weights are {held.most_common(1)[0][0]}")


def _rows(family: Family | None, tensors: Mapping[str, Spec]) -> int | None:
    """Return the rows of the embedding."""
    name = family.name_of("embed") if family is not None else None
    if name is None:
        ends = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
        name = next((n for n in tensors if n.endswith(ends)), None)
    spec = tensors.get(name) if name is not None else None
    return spec.shape[0] if spec is not None and spec.shape else None


def _vocabulary(config: Mapping[str, Any], rows: int | None) -> Iterator[Mismatch]:
    size = config.get("vocab_size")
    if isinstance(size, int) and rows is not None and size != rows:
        yield Mismatch("asset", _CONFIG, f"says vocab_size {size}, the embedding has {rows} rows")


def _tokens(tokenizer: Any) -> tuple[int, int] | None:
    """Return one more than the highest id of a tokenizer's vocabulary, and of its added tokens."""
    try:
        vocab = tokenizer["model"]["vocab"]
        words = len(vocab) if isinstance(vocab, list) else max(vocab.values(), default=-1) + 1
        added = max((t["id"] for t in tokenizer.get("added_tokens") or ()), default=-1) + 1
        return int(words), int(added)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
