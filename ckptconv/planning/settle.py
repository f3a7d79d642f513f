"""Settle how a MindSpore checkpoint packs its tensors: by flags, by the run's YAML, or by a stated guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ckptconv.containers.mindspore import mindspore
from ckptconv.dialects import Dialect
from ckptconv.dialects.mindformers import dialect_of
from ckptconv.errors import FormatError, UsageError
from ckptconv.facts import read_run
from ckptconv.places.places import place
from ckptconv.planning.model import beside_of
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.request import ConvertOptions
from ckptconv.relations import Spec
from ckptconv.slots import Words
from ckptconv.slots.translate import some, without

__all__ = ["find_run", "from_run", "keeps_names", "layouts", "reading", "settled", "understood"]

_YAML: Final = (".yaml", ".yml")


def reading(options: ConvertOptions) -> Mapping[str, Any]:
    """Return what a MindSpore reader is to know: fields of ``ReadOptions``."""
    if options.to == "mindformers":
        return {"strategy": options.source_strategy, "states": _plain(options)}
    if options.strategy is not None and options.source_strategy is not None:
        raise UsageError("--strategy and --source-strategy both speak of the source here; give one")
    return {"strategy": options.source_strategy or options.strategy}


def _plain(options: ConvertOptions) -> bool:
    """Whether a target of MindFormers' names may keep those of the source."""
    asked = (options.like, options.dialect, options.experts, options.mla, options.lora, options.adapter)
    return not options.qkv_concat and all(a is None for a in asked)


def keeps_names(checkpoint: Checkpoint, options: ConvertOptions) -> bool:
    """Whether a conversion only merges or cuts a checkpoint that has MindFormers' names already."""
    return options.to == "mindformers" and checkpoint.producer == "mindspore" and _plain(options)


def understood(checkpoint: Checkpoint, options: ConvertOptions) -> Checkpoint:
    """Settle how a MindSpore checkpoint packs its tensors: by the flags, the run's YAML, or a guess.

    Raises:
        UsageError: if flags do not go together, or several YAML files are beside it.
        FormatError: with ``check``, if a file is not what its checksum says.
    """
    if checkpoint.producer != "mindspore":
        if options.yaml is not None or options.check:
            flag = "--yaml" if options.yaml is not None else "--check"
            raise UsageError(f"{flag} is for MindSpore's checkpoints; this one is of {checkpoint.producer}")
        return checkpoint
    if options.check:
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, _check(checkpoint)))
    dialect = dialect_of(checkpoint.tensors)
    if dialect is None or keeps_names(checkpoint, options):
        return checkpoint
    path, run = find_run(checkpoint, place(options.yaml) if options.yaml is not None else None)
    flags = layouts(options) if options.to != "mindformers" else {}
    words, notes = settled(dialect, checkpoint.tensors, run, flags)
    buffers = [n for n in checkpoint.tensors if dialect.is_ignored(n)]
    if path is not None:
        notes.insert(0, Note("info", f"the run's YAML is {path}"))
    return replace(
        checkpoint,
        relation=without(checkpoint.relation, buffers, "buffers the model makes itself"),
        table=dialect.table(words),
        arguments=run,
        notes=(*checkpoint.notes, *notes),
    )


def _check(checkpoint: Checkpoint) -> Note:
    """Compare every file of weights with the CRC-32 it holds."""
    paths = sorted({e.path for s in checkpoint.stored.values() for e in s.extents})
    held = sum(mindspore.check_crc(path) for path in paths)
    if held == len(paths):
        return Note("info", f"the CRC-32 of all {held} files is right")
    return Note(
        "warning", f"--check: {len(paths) - held} of {len(paths)} files hold no CRC-32, {held} are right"
    )


def find_run(checkpoint: Checkpoint, given: Path | None) -> tuple[Path | None, Mapping[str, Any]]:
    """Return the run's YAML that was given or is beside the checkpoint, and its ``model_config``."""
    if given is not None:
        if not given.is_file():
            raise UsageError("no such file", where=given, hint="check --yaml")
        run = read_run(given)
        if run is None:
            raise FormatError("the YAML has no model.model_config", where=given, hint="check --yaml")
        return given, run
    for folder in beside_of(checkpoint):
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
    try:
        return read_run(path)
    except FormatError:
        return None


def layouts(options: ConvertOptions) -> dict[str, bool]:
    """Return the words of packing that flags state, and whether each holds."""
    flags: dict[str, bool] = {}
    if options.qkv_layout is not None:
        flags["qkv_contiguous"] = options.qkv_layout == "contiguous"
    if options.mlp_layout is not None:
        flags["mlp_contiguous"] = options.mlp_layout == "contiguous"
    return flags


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
