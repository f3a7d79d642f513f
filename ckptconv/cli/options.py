"""Declare the flags that every converting command takes, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

__all__ = ["EngineChoice", "Flags", "Group", "Source", "Target", "WeightsChoice", "converting"]


class DTypeChoice(str, Enum):
    """What ``--dtype`` takes."""

    keep = "keep"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class FormatChoice(str, Enum):
    """What ``--format`` takes."""

    safetensors = "safetensors"
    bin = "bin"
    ckpt = "ckpt"


class LoraChoice(str, Enum):
    """What ``--lora`` takes."""

    merge = "merge"
    adapter = "adapter"


class WeightsChoice(str, Enum):
    """What ``--weights`` takes."""

    master = "master"
    model = "model"


class EngineChoice(str, Enum):
    """What ``--engine`` takes."""

    local = "local"
    ray = "ray"


Source = Annotated[
    Path,
    typer.Argument(
        metavar="SRC", help="The run's folder, the tag folder, or a file inside.", show_default=False
    ),
]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)]

_WHAT, _ASSETS, _HOW = "What is written", "Config and tokenizer", "How it runs"


@dataclass(frozen=True, slots=True)
class Flags:
    """Hold the flags of a converting command as they were given."""

    dtype: DTypeChoice
    format: FormatChoice | None
    max_shard_size: str
    weights: WeightsChoice | None
    drop: tuple[str, ...]
    rename: Path | None
    lora: LoraChoice | None
    lora_alpha: float | None
    lora_r: int | None
    adapter: Path | None
    config: str | None
    tokenizer: str | None
    family: str | None
    no_assets: bool
    tag: str | None
    dry_run: bool
    resume: bool
    overwrite: bool
    workers: int
    max_memory: str
    engine: EngineChoice
    address: str | None
    json: bool
    quiet: bool
    verify: bool
    copy_code: bool
    dequantize: bool


# Optional[...] rather than "| None": typer reads these annotations on Python 3.10 too.
def _flags(
    dtype: Annotated[
        DTypeChoice,
        typer.Option(
            help="Round all floating-point tensors to this; keep leaves the chosen weights' dtype.",
            rich_help_panel=_WHAT,
        ),
    ] = DTypeChoice.keep,
    format: Annotated[
        Optional[FormatChoice],  # noqa: UP045
        typer.Option(
            help="Container of the weights: safetensors by default, ckpt for MindFormers.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Most bytes of weights per file.", rich_help_panel=_WHAT)
    ] = "5GB",
    weights: Annotated[
        Optional[WeightsChoice],  # noqa: UP045
        typer.Option(
            help="fp32 masters (the default), or the 16-bit weights the model ran with.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    drop: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="GLOB",
            help="Leave out tensors whose name matches; may be repeated.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    rename: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Rename tensors: 'old = new' a line, * for digits.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        Optional[LoraChoice],  # noqa: UP045
        typer.Option(
            help="Merge LoRA adapters into the weights, or write the adapter alone, for PEFT.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    lora_alpha: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="X",
            help="The adapters' alpha, where no adapter_config.json says it.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    lora_r: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            metavar="N", help="The adapters' rank, to be checked.", rich_help_panel=_WHAT, show_default=False
        ),
    ] = None,
    adapter: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR",
            help="Merge the PEFT adapter in this folder into the weights.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="DIR_OR_HUB_ID",
            help="Where config.json is, if not beside the checkpoint.",
            rich_help_panel=_ASSETS,
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="DIR_OR_HUB_ID",
            help="Where the tokenizer is, if not beside the checkpoint.",
            rich_help_panel=_ASSETS,
            show_default=False,
        ),
    ] = None,
    family: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME_OR_FILE",
            help="Take the architecture of this name, or the one this file defines, not the config's.",
            rich_help_panel=_ASSETS,
            show_default=False,
        ),
    ] = None,
    no_assets: Annotated[
        bool, typer.Option("--no-assets", help="Write the weights alone.", rich_help_panel=_ASSETS)
    ] = False,
    tag: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME",
            help="The DeepSpeed tag to read instead of the one in 'latest'.",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; write nothing.", rich_help_panel=_HOW)
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=_HOW)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model in OUT.", rich_help_panel=_HOW)
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Threads; 0 is two a core, at most 8. On a cluster tasks at a time.",
            rich_help_panel=_HOW,
        ),
    ] = 0,
    max_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Most memory all buffers together take; on a cluster, those of one task.",
            rich_help_panel=_HOW,
        ),
    ] = "64MiB",
    engine: Annotated[
        EngineChoice,
        typer.Option(
            help="Who does the work: threads of this process, or a Ray cluster.", rich_help_panel=_HOW
        ),
    ] = EngineChoice.local,
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="ADDRESS",
            help="The Ray cluster: auto (the default), HOST:PORT, ray://HOST:PORT, or local to start one.",
            rich_help_panel=_HOW,
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the plan or the result as JSON.", rich_help_panel=_HOW)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=_HOW)
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Compare the result with the source, and certify it.", rich_help_panel=_HOW
        ),
    ] = False,
    copy_code: Annotated[
        bool,
        typer.Option(
            "--copy-code",
            help="Copy the model's own *.py files from beside its config; they are never run.",
            rich_help_panel=_ASSETS,
        ),
    ] = False,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            help="Write the values of quantised weights; --to hf copies codes and scales otherwise.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
) -> None:
    """Only the signature counts."""


@dataclass(frozen=True, slots=True)
class Group:
    """Hold flags that some converting commands take.

    Attributes:
        signature: A function whose parameters are the flags.
        read: Turns their values into fields of ``ConvertOptions``.
    """

    signature: Callable[..., None]
    read: Callable[[dict[str, Any]], dict[str, Any]]


def converting(*groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the common flags and those of groups.

    It receives them as its last parameters: one ``Flags``, and ``fields``, a dict for ``ConvertOptions``.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        given = ("flags", "fields")
        own = [p for n, p in inspect.signature(command, eval_str=True).parameters.items() if n not in given]
        common = _parameters(_flags)
        extra = [_parameters(g.signature) for g in groups]

        @wraps(command)
        def wrapper(**values: Any) -> None:
            found = {p.name: values.pop(p.name) for p in common}
            found["drop"] = tuple(found["drop"] or ())
            fields: dict[str, Any] = {}
            for group, parameters in zip(groups, extra, strict=True):
                fields |= group.read({p.name: values.pop(p.name) for p in parameters})
            command(**values, flags=Flags(**found), fields=fields)

        every = own + [p for parameters in extra for p in parameters] + common
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in every]
        wrapper.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in keyword}
        return wrapper

    return wrap


def _parameters(function: Callable[..., None]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())
