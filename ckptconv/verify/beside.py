"""Compare what stands beside a model's weights with what the plan would write there."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from ckptconv.errors import CkptconvError, FormatError
from ckptconv.families import Family
from ckptconv.families.config import facts_of, flat, same
from ckptconv.places.jsonfile import parse_json
from ckptconv.places.regular import read_bytes
from ckptconv.plans.loaded import LOADED, part_of
from ckptconv.plans.plan import AssetFile
from ckptconv.verify.result import Mismatch

__all__ = ["IDLE", "certified", "check_beside"]

_CONFIG, _GENERATION = "config.json", "generation_config.json"

# Keys that decide nothing of what a model computes: transformers 5.23, ``configuration_utils.py``. The dtype
# and whether the head is tied are compared with the weights themselves.
IDLE: Final = (
    *("_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype", "_from_model_config"),
    *("use_cache", "initializer_range", "gradient_checkpointing", "return_dict", "torchscript", "output_*"),
    *("*dropout*", "*_pdrop", "_attn_implementation*", "problem_type", "chunk_size_feed_forward"),
    *("tie_word_embeddings", "ckptconv*"),
)
# Beyond what a config that was built says, so much decides what is loaded at all.
_DECIDE: Final = ("auto_map", "transformers_weights", "quantization_config", "partial_rotary_factor")
_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_beside(
    folder: Path, assets: Sequence[AssetFile], weights: Collection[str], family: Family | None
) -> tuple[list[Mismatch], list[tuple[str, str]]]:
    """Compare config, generation config, tokenizer and templates in a model's folder with the planned ones.

    Args:
        folder: What was written.
        assets: What the plan would write beside the weights.
        weights: The files of weights that were compared, relative to the folder.
        family: The architecture, if it has a table.

    Returns:
        What differs, each with the field's name, and notes as ``(level, text)``.
    """
    planned = {a.name: a for a in assets if not a.name.endswith(".index.json")}
    wrong: list[Mismatch] = []
    notes: list[tuple[str, str]] = []
    for name, asset in planned.items():
        path = folder / name
        if name == _CONFIG and not path.is_file():
            continue  # the weights alone, which is said elsewhere
        if not path.is_file():
            if name != _GENERATION or not asset.derived:
                wrong.append(Mismatch("asset", name, "is missing"))
            continue
        for text in _differs(asset, read_bytes(path), family):
            wrong.append(Mismatch("asset", name, text))
    names = {p.relative_to(folder).as_posix() for q in _patterns() for p in folder.glob(q)}
    known = any(part_of(n) == "tokenizer" for n in planned)
    for name in sorted(names - planned.keys() - set(weights)):
        part = part_of(name)
        if name == _CONFIG or name.endswith(".index.json"):
            continue
        if part == "tokenizer" and not known:
            notes.append(("warning", f"{name} was not compared: give the tokenizer with --tokenizer"))
        elif name == _GENERATION and _CONFIG not in planned:
            notes.append(("warning", f"{name} was not compared: no config of the source is known"))
        else:
            text = "is there, and loaders read it, but the conversion writes no such file"
            wrong.append(Mismatch("asset", name, text))
    code = sorted(p.name for p in folder.glob("*.py") if p.name not in planned)
    if code:
        notes.append(("warning", f"code of the model was not compared: {', '.join(code[:4])}"))
    return wrong, notes


def certified(folder: Path, weights: Collection[str], assets: Sequence[AssetFile]) -> list[str]:
    """List the files of a model's folder that were compared: weights, their index, and what is planned."""
    names = {*weights, *(a.name for a in assets)}
    names |= {p.name for p in folder.glob("*.index.json") if part_of(p.name) is not None}
    if (folder / _CONFIG).is_file():
        names.add(_CONFIG)
    return sorted(n for n in names if (folder / n).is_file())


def _patterns() -> list[str]:
    return [p for patterns in LOADED.values() for p in patterns]


def _differs(asset: AssetFile, found: bytes, family: Family | None) -> Iterator[str]:
    """Say how a file differs from the planned one, field by field where it has fields."""
    if asset.content == found:
        return
    ours, theirs = _json(asset.content), _json(found)
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        yield "has another content than the conversion writes"
    elif asset.name == _CONFIG:
        yield from _config(ours, theirs, family, built=asset.derived)
    elif asset.name == _GENERATION:
        yield from _fields(ours, theirs, (*ours, *theirs), {}, ids=asset.derived)
    else:
        keys = [k for k in dict.fromkeys((*ours, *theirs)) if ours.get(k) != theirs.get(k)]
        if keys:
            yield f"differs in {', '.join(map(str, keys[:4]))}"


def _config(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], family: Family | None, *, built: bool
) -> Iterator[str]:
    one, two = dict(ours), dict(theirs)
    if built or ("rope_parameters" in one) != ("rope_parameters" in two):  # of another age of transformers
        one, two = ({k: v for k, v in flat(c).items() if k != "rope_parameters"} for c in (ours, theirs))
    assumed = family.template.assumed if family is not None and family.template is not None else {}
    keys = (*one, *(k for k in _DECIDE if k in two)) if built else (*one, *two)
    said: set[str] = set()
    if built and family is not None and family.template is not None:
        # A config that was built and one that was published say the same in other keys.
        stated = set(family.template.keys)
        keys = tuple(k for k in keys if k not in stated or k in two)
        for text in _facts(ours, theirs, family):
            said.add(text)
            yield text
    for text in _fields(one, two, keys, assumed, ids=built):
        if text not in said:
            yield text


def _facts(ours: Mapping[str, Any], theirs: Mapping[str, Any], family: Family) -> Iterator[str]:
    try:
        one, two = facts_of(ours, family), facts_of(theirs, family)
    except CkptconvError as e:
        yield f"cannot be read as one of {family.name}: {e.message}"
        return
    for name in one.keys() & two.keys() - {"dtype", "tied", "bos", "eos", "pad"}:
        if not same(name, one[name].value, two[name].value):
            key = two[name].origin.removeprefix("config.")
            yield _said(key, two[name].value, one[name].value)


def _fields(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    keys: Sequence[str],
    assumed: Mapping[str, Any],
    *,
    ids: bool,
) -> Iterator[str]:
    """Yield how fields differ; with ``ids`` those of tokens that are not known to us are left alone."""
    for key in dict.fromkeys(keys):
        if any(fnmatchcase(key, p) for p in IDLE):
            continue
        one = ours.get(key, assumed.get(key))
        two = theirs.get(key, assumed.get(key))
        if one == two or (ids and key in _IDS and one is None):
            continue
        yield _said(key, two, one)


def _said(key: str, found: Any, planned: Any) -> str:
    return f"says {key} {_short(found)}, the conversion writes {_short(planned)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _json(content: bytes) -> Any:
    try:
        return parse_json(content, where="a file beside the weights")
    except FormatError:
        return None
