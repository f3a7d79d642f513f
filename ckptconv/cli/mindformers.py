"""Declare the flags of MindSpore and MindFormers checkpoints."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli.options import Group

__all__ = ["MINDFORMERS_SOURCE", "MINDFORMERS_TARGET", "MINDSPORE", "MINDSPORE_VERIFIED"]

_PANEL = "MindSpore and MindFormers"


class QkvChoice(str, Enum):
    """What ``--qkv-layout`` takes."""

    grouped = "grouped"
    contiguous = "contiguous"


class MlpChoice(str, Enum):
    """What ``--mlp-layout`` takes."""

    interleaved = "interleaved"
    contiguous = "contiguous"


class ExpertsChoice(str, Enum):
    """What ``--experts`` takes."""

    sequential = "sequential"
    grouped = "grouped"


class LatentChoice(str, Enum):
    """What ``--mla`` takes."""

    fused = "fused"
    cut = "split"


def _option(help: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=_PANEL, show_default=False)


# Optional[...] rather than "| None": typer reads these annotations on Python 3.10 too.
_Qkv = Annotated[
    Optional[QkvChoice],  # noqa: UP045
    _option("A fused query, key and value: by query group in turns, or one after the other."),
]
_Mlp = Annotated[
    Optional[MlpChoice],  # noqa: UP045
    _option("A fused gate and up projection: row by row in turns, or one after the other."),
]
_Yaml = Annotated[
    Optional[Path],  # noqa: UP045
    _option("YAML of the run, if not beside the checkpoint: config.json is built from it.", metavar="FILE"),
]
_Check = Annotated[bool, _option("First compare MindSpore's files with the checksums they hold.", "--check")]
_Concat = Annotated[bool, _option("Write query, key, value and gate, up fused.", "--qkv-concat")]


def _strategy(text: str, *names: str) -> Any:
    return _option(text, *names, metavar="FILE_OR_DIR")


def _source(
    yaml: _Yaml = None,
    strategy: Annotated[
        Optional[Path],  # noqa: UP045
        _strategy("Strategy files of the ranks, if not beside the checkpoint."),
    ] = None,
    qkv_layout: _Qkv = None,
    mlp_layout: _Mlp = None,
    check: _Check = False,
) -> None: ...


def _target(
    strategy: Annotated[
        Optional[Path],  # noqa: UP045
        _strategy("Cut the model over ranks as this strategy says."),
    ] = None,
    like: Annotated[
        Optional[Path],  # noqa: UP045
        _option("Take names, packing, dtypes and container from this checkpoint.", metavar="CKPT"),
    ] = None,
    dialect: Annotated[
        Optional[str],  # noqa: UP045
        _option("Names: legacy, glm, core, gpt2, bloom; those of the family by default.", metavar="NAME"),
    ] = None,
    experts: Annotated[
        Optional[ExpertsChoice],  # noqa: UP045
        _option("Core: one tensor an expert, or all in one; legacy: grouped is use_gmm."),
    ] = None,
    mla: Annotated[
        Optional[LatentChoice],  # noqa: UP045
        _option("Latent projections, fused or split."),
    ] = None,
    qkv_concat: _Concat = False,
    qkv_layout: _Qkv = None,
    mlp_layout: _Mlp = None,
) -> None: ...


def _both(
    yaml: _Yaml = None,
    strategy: Annotated[
        Optional[Path],  # noqa: UP045
        _strategy("Strategy files: of the target with --to mindformers, else of the source."),
    ] = None,
    source_strategy: Annotated[
        Optional[Path],  # noqa: UP045
        _strategy("Strategy files of the source, if not beside it.", "--source-strategy"),
    ] = None,
    qkv_concat: _Concat = False,
    qkv_layout: _Qkv = None,
    mlp_layout: _Mlp = None,
    check: _Check = False,
) -> None: ...


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def _verified(
    yaml: _Yaml = None,
    strategy: Annotated[
        Optional[Path],  # noqa: UP045
        _strategy("Strategy files: of what was written if that is MindSpore's, else of SRC."),
    ] = None,
    source_strategy: Annotated[
        Optional[Path],  # noqa: UP045
        _strategy("Strategy files of SRC, if not beside it.", "--source-strategy"),
    ] = None,
    qkv_layout: _Qkv = None,
    mlp_layout: _Mlp = None,
    check: _Check = False,
) -> None: ...


MINDFORMERS_SOURCE = Group(_source, _fields)
MINDFORMERS_TARGET = Group(_target, _fields)
MINDSPORE = Group(_both, _fields)
MINDSPORE_VERIFIED = Group(_verified, _fields)
