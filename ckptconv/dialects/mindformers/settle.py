"""Settle how a checkpoint of MindFormers packs its tensors: by what is stated, the run's YAML, or a guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ckptconv.dialects.base import Dialect
from ckptconv.errors import FormatError, UsageError
from ckptconv.facts.mindformers import read_run
from ckptconv.places.regular import read_head
from ckptconv.plans.checkpoint import Note
from ckptconv.relations import Spec
from ckptconv.slots import Words
from ckptconv.slots.translate import some

__all__ = ["find_run", "from_run", "layouts", "settled"]

_HEAD: Final = 1 << 20
_YAML: Final = (".yaml", ".yml")


def find_run(folders: Sequence[Path], given: Path | None) -> tuple[Path | None, Mapping[str, Any]]:
    """Return the run's YAML that was given or is beside the checkpoint, and its ``model_config``.

    Args:
        folders: Where files beside the weights are looked for.
        given: The file a user named.

    Raises:
        UsageError: if it is not there, or several are.
        FormatError: if it is of no run.
    """
    if given is not None:
        if not given.is_file():
            raise UsageError("no such file", where=given, hint="check --yaml")
        run = read_run(given)
        if run is None:
            raise FormatError("the YAML has no model.model_config", where=given, hint="check --yaml")
        return given, run
    for folder in folders:
        if not folder.is_dir():
            continue
        found = [(p, r) for p in _yamls(folder) if (r := _tried(p)) is not None]
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} YAML files of runs are beside the checkpoint",
                where=folder,
                hint="give --yaml, one of " + some([p.name for p, _ in found], 8),
            )
        if found:
            return found[0]
    return None, {}


def _yamls(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in _YAML and p.is_file())


def _tried(path: Path) -> dict[str, Any] | None:
    """Return the run's ``model_config``; None if the file is of something else, or no YAML at all."""
    try:
        return read_run(path)
    except FormatError:
        if b"model_config" in read_head(path, _HEAD):  # it would have said how the weights lie
            raise
        return None


def layouts(qkv_layout: str | None, mlp_layout: str | None) -> dict[str, bool]:
    """Return the words of packing that are stated, and whether each holds."""
    stated = {"qkv_contiguous": qkv_layout, "mlp_contiguous": mlp_layout}
    return {word: value == "contiguous" for word, value in stated.items() if value is not None}


def from_run(run: Mapping[str, Any], word: str) -> bool | None:
    """Return what a run says of a word (mindformers 1.9, ``transformer_config.py``; ``glm2_config.py``)."""
    if word == "mlp_contiguous":
        value = run.get("use_interleaved_weight_layout_mlp")
        return not value if isinstance(value, bool) else None
    if word == "gmm":
        experts = run.get("moe_config")
        value = experts.get("use_gmm") if isinstance(experts, Mapping) else None
    else:
        key = {"qkv_contiguous": "use_contiguous_weight_layout_attention", "rearranged": "use_rearrange_rope"}
        value = run.get(key[word])
    return value if isinstance(value, bool) else None


# What a word is about, what it means that it does not hold and that it does, and which flag says so.
_SAID = {
    "qkv_contiguous": (
        "query, key and value lie",
        "in turns, by query group",
        "one after the other",
        "--qkv-layout",
    ),
    "mlp_contiguous": (
        "gate and up projection lie",
        "in turns, row by row",
        "one after the other",
        "--mlp-layout",
    ),
    "rearranged": ("rows of query and key are", "as published", "rearranged (use_rearrange_rope)", "--yaml"),
    "gmm": ("the experts' weights are", "[out, in]", "[in, out] (use_gmm)", "--yaml"),
}


def settled(
    dialect: Dialect, tensors: Mapping[str, Spec], run: Mapping[str, Any], flags: Mapping[str, bool]
) -> tuple[Words, list[Note]]:
    """Return the words that hold for a checkpoint, and a note for each that was guessed."""
    words = dialect.told(tensors)
    notes, more = [], []
    left = dialect.leaves_open(tensors, words) if dialect.leaves_open is not None else {}
    for word, likely in left.items():
        stated = flags[word] if word in flags else from_run(run, word)
        if stated is None:
            what, no, yes, flag = _SAID[word]
            text = f"{what} {yes if likely else no}: names and shapes do not tell ({flag} does)"
            notes.append(Note("guess", text))
        more += [word] if (likely if stated is None else stated) else []
    return words.beside(more), notes
