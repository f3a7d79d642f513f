"""Gather what stands beside the weights in a model's folder: config, generation config, tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ckptconv.assets.code import collect_code
from ckptconv.assets.config import config_file, generation_file
from ckptconv.assets.find import find_assets
from ckptconv.assets.scores import as_scoring
from ckptconv.assets.tokenizer import collect_tokenizer
from ckptconv.assets.tokens import token_ids
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import UsageError
from ckptconv.families import Family, Findings
from ckptconv.places.jsonfile import parse_json
from ckptconv.planning.model import ConfigFound
from ckptconv.planning.names import Named
from ckptconv.plans.checkpoint import Checkpoint, Note, beside_of
from ckptconv.plans.plan import AssetFile, Step
from ckptconv.relations import InBlocks
from ckptconv.slots.translate import some

__all__ = ["compare", "compared", "gather_assets"]


def compared(family: Family, config: Mapping[str, Any], named: Named, *, part: bool = False) -> Findings:
    """Compare names and shapes with the architecture's.

    Args:
        family: The architecture.
        config: The content of config.json.
        named: The tensors that are written.
        part: Whether only some of the model's tensors were asked for, without its config.json.

    Raises:
        PlanError: if a shape or the number of layers contradicts the config.
    """
    return family.compare(config, {n: s.shape for n, s in named.written.items()}, named.aliases, part=part)


def compare(family: Family, config: Mapping[str, Any], named: Named, findings: Findings) -> list[Note]:
    """Say what is more than the architecture has; what is lacking is judged elsewhere.

    Args:
        family: The architecture.
        config: The content of config.json.
        named: The tensors that are written.
        findings: What `compared` returned.
    """
    notes = []
    if (missing := _without_mtp(family, config, named)) is not None:
        notes.append(Note("info", missing))
    if findings.unexpected:
        text = (
            f"{len(findings.unexpected)} names beyond {family.name} pass through: {some(findings.unexpected)}"
        )
        notes.append(Note("info", text))
    return notes


def _without_mtp(family: Family, config: Mapping[str, Any], named: Named) -> str | None:
    """Say that layers for multi-token prediction are named by the config, but not in the checkpoint."""
    wanted = family.dims(config).get("mtp", 0)
    if not wanted:
        return None
    found, _ = family.table(config).named(named.written)
    held = len({f.layer for f in found if f.layer.startswith("mtp.")})
    if held >= wanted:
        return None
    return (
        f"config.json names {wanted} layers for multi-token prediction, of which the checkpoint "
        f"holds {held}; the model is written without the others (transformers does not use them)"
    )


def gather_assets(
    checkpoint: Checkpoint,
    named: Named,
    family: Family | None,
    config: ConfigFound,
    tokenizer: str | None,
    copy_code: bool = False,
) -> tuple[list[AssetFile], list[Step], list[Note]]:
    """Gather config.json, true to the weights written, generation_config.json and the tokenizer's files.

    Args:
        checkpoint: What is converted.
        named: Its tensors as they are written.
        family: Their architecture, if it is known.
        config: The config found.
        tokenizer: Folder or hub id of the tokenizer; None to look beside the config and the checkpoint.
        copy_code: Whether the ``*.py`` files beside the config are copied.
    """
    written = Counter[str]()
    for name, spec in named.written.items():
        if (
            name not in checkpoint.buffers
            and not any(isinstance(t, InBlocks) for t in named.terms.get(name, ()))
            and dtype_named(spec.dtype).kind == "float"
            and not spec.dtype.startswith("float8")
        ):
            written[spec.dtype] += spec.numel
    dtype = written.most_common(1)[0][0] if written else None
    told = family.tied(config.values) if family else config.values.get("tie_word_embeddings")
    tied = None if named.tied == told else named.tied
    coded = checkpoint.quantised is not None and not checkpoint.quantised.decoded
    beside = tuple(p for p in (config.folder, *beside_of(checkpoint)) if p is not None)
    folder, origin = find_assets(tokenizer, beside, flag="--tokenizer")
    files = collect_tokenizer(folder, origin, config.folder) if folder is not None else []
    built = config.folder is None
    ids = token_ids(files, family.dims(config.values).get("vocab") if family else None) if built else {}
    says, scoring = as_scoring(config.values, named.written)
    config_asset, steps = config_file(
        says, config.origin, dtype=None if coded else dtype, tied=tied, built=built, ids=ids
    )
    steps = [*scoring, *steps]
    assets = [config_asset]
    if coded and checkpoint.quantised is not None:
        assets += checkpoint.quantised.marks
    values = json.loads(config_asset.content)
    generation = generation_file(folder if built and ids else config.folder, values, config.origin)
    if generation is not None:
        assets.append(generation)
    notes = _endless(values, generation)
    if not files:
        if tokenizer is not None:
            raise UsageError(f"--tokenizer: there are no tokenizer files in {tokenizer}")
        if "_class_name" not in config.values:  # a part of a pipeline has none
            notes.append(Note("warning", "no tokenizer files found; --tokenizer takes a folder or hub id"))
    code, said = collect_code(config.folder, config.values, config.origin, copy=copy_code)
    return assets + files + code, steps, notes + [Note("warning", text) for text in said]


def _endless(config: Mapping[str, Any], generation: AssetFile | None) -> list[Note]:
    """Warn of a model that generates and is told by nothing which token ends a text."""
    if generation is None:
        return []
    said = parse_json(generation.content, where=f"{generation.origin}/{generation.name}")
    if not isinstance(said, dict) or said.get("eos_token_id") is not None:
        return []
    if "eos_token_id" not in config or config["eos_token_id"] is not None:
        return []
    text = (
        "eos_token_id is not known, so generate() will not stop by itself: give the tokenizer with "
        "--tokenizer, or set it in config.json and generation_config.json"
    )
    return [Note("warning", text)]
