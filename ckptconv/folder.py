"""Gather what stands beside the weights in a model's folder: config, generation config, tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.assets.config import config_file, generation_file, read_config
from ckptconv.assets.find import CONFIG, find_assets
from ckptconv.assets.tokenizer import collect_tokenizer
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError, UsageError
from ckptconv.families import Family
from ckptconv.graph import AssetFile, Step
from ckptconv.naming import Named, some
from ckptconv.readers.base import Checkpoint, Note

__all__ = ["ConfigFound", "compare", "find_config", "gather_assets"]


@dataclass(frozen=True, slots=True)
class ConfigFound:
    """A config.json: its content, its folder, and what to call that folder to people."""

    values: Mapping[str, Any]
    folder: Path
    origin: str


def find_config(checkpoint: Checkpoint, given: str | None, *, needed: bool) -> ConfigFound | None:
    """Find config.json where ``given`` says, else beside the checkpoint.

    Raises:
        PlanError: if there is none although it is ``needed``.
    """
    folder, origin = find_assets(given, _beside(checkpoint), (CONFIG,), flag="--config")
    if folder is None or not (folder / CONFIG).is_file():
        if needed or given is not None:
            raise PlanError(
                f"no config.json was found {'in ' + origin if folder else 'beside the checkpoint'}",
                where=checkpoint.root,
                hint="give --config with a folder or hub id of the same architecture, "
                "or --no-assets for the weights alone",
            )
        return None
    return ConfigFound(read_config(folder), folder, origin)


def compare(family: Family, config: Mapping[str, Any], named: Named) -> list[Note]:
    """Check names and shapes against the architecture's; say what is missing and what is more.

    Raises:
        PlanError: if a shape or the number of layers contradicts the config.
    """
    shapes = {n: s.shape for n, s in named.written.items()}
    findings = family.compare(config, shapes, named.aliases)
    notes = []
    if findings.missing:
        text = (
            f"{len(findings.missing)} parameters of {family.name} are not in the checkpoint, so the model is "
            f"incomplete (saved with exclude_frozen_parameters?): {some(findings.missing)}"
        )
        notes.append(Note("warning", text))
    if findings.unexpected:
        text = (
            f"{len(findings.unexpected)} names beyond {family.name} pass through: {some(findings.unexpected)}"
        )
        notes.append(Note("info", text))
    return notes


def gather_assets(
    checkpoint: Checkpoint, named: Named, family: Family | None, config: ConfigFound, tokenizer: str | None
) -> tuple[list[AssetFile], list[Step], list[Note]]:
    """Gather config.json, true to the weights written, generation_config.json and the tokenizer's files.

    Args:
        checkpoint: What is converted.
        named: Its tensors as they are written.
        family: Their architecture, if it is known.
        config: The config found.
        tokenizer: Folder or hub id of the tokenizer; None to look beside the config and the checkpoint.
    """
    written = Counter[str]()
    for name, spec in named.written.items():
        if name not in checkpoint.buffers and dtype_named(spec.dtype).kind == "float":
            written[spec.dtype] += spec.numel
    dtype = written.most_common(1)[0][0] if written else None
    says = family.tied(config.values) if family else config.values.get("tie_word_embeddings")
    tied = None if named.tied == says else named.tied
    config_asset, steps = config_file(config.values, config.origin, dtype=dtype, tied=tied)
    assets = [config_asset]
    if (generation := generation_file(config.folder, config.values, config.origin)) is not None:
        assets.append(generation)
    beside = (config.folder, *_beside(checkpoint))
    folder, origin = find_assets(tokenizer, beside, flag="--tokenizer")
    files = collect_tokenizer(folder, origin, config.folder) if folder is not None else []
    notes = []
    if not files:
        if tokenizer is not None:
            raise UsageError(f"--tokenizer: there are no tokenizer files in {tokenizer}")
        notes.append(Note("warning", "no tokenizer files found; --tokenizer takes a folder or hub id"))
    return assets + files, steps, notes


def _beside(checkpoint: Checkpoint) -> tuple[Path, ...]:
    data = checkpoint.data if checkpoint.data.is_dir() else checkpoint.data.parent
    return tuple(dict.fromkeys((checkpoint.root, data)))
