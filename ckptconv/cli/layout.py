"""Declare the flags that speak of ranks: of the source's, and of the target's."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli.options import Group

__all__ = ["READ", "SOURCE", "STATED", "TARGET"]

_SOURCE, _TARGET = "Layout of the source", "Layout of the target"
_SIZES = ("tp", "pp", "vpp", "ep", "etp")


def _size(what: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, metavar="N", min=1, help=what, rich_help_panel=panel, show_default=False)


class ReplicasChoice(str, Enum):
    """What ``--replicas`` takes."""

    all = "all"
    sample = "sample"
    first = "first"


class ScheduleChoice(str, Enum):
    """What ``--schedule`` takes."""

    dualpipev = "dualpipev"


class ExpertsChoice(str, Enum):
    """What ``--experts`` takes."""

    sequential = "sequential"
    grouped = "grouped"
    legacy_grouped = "legacy-grouped"


class LatentChoice(str, Enum):
    """What ``--mla`` takes."""

    fused = "fused"
    cut = "split"


Int = Optional[int]  # noqa: UP045  (typer reads these annotations on Python 3.10 too)
_CHECK = "parallel size; checked, needed only where the checkpoint does not say."


def _source(
    tp: Annotated[Int, _size(f"Tensor {_CHECK}", _SOURCE)] = None,
    pp: Annotated[Int, _size(f"Pipeline {_CHECK}", _SOURCE)] = None,
    vpp: Annotated[Int, _size("Virtual pipeline chunks a stage.", _SOURCE)] = None,
    ep: Annotated[Int, _size(f"Expert {_CHECK}", _SOURCE)] = None,
    etp: Annotated[Int, _size(f"Expert tensor {_CHECK}", _SOURCE)] = None,
) -> None: ...


def _stated(
    source_tp: Annotated[Int, _size(f"Tensor {_CHECK}", _SOURCE, "--source-tp")] = None,
    source_pp: Annotated[Int, _size(f"Pipeline {_CHECK}", _SOURCE, "--source-pp")] = None,
    source_vpp: Annotated[Int, _size("Virtual pipeline chunks a stage.", _SOURCE, "--source-vpp")] = None,
    source_ep: Annotated[Int, _size(f"Expert {_CHECK}", _SOURCE, "--source-ep")] = None,
    source_etp: Annotated[Int, _size(f"Expert tensor {_CHECK}", _SOURCE, "--source-etp")] = None,
) -> None: ...


def _read(
    iteration: Annotated[
        Int,
        typer.Option(
            metavar="N",
            help="The iteration to read instead of the newest.",
            rich_help_panel=_SOURCE,
            show_default=False,
        ),
    ] = None,
    vocab_size: Annotated[
        Int,
        typer.Option(
            metavar="N",
            min=1,
            help="True size of the vocabulary, where nothing else says it; rows beyond are padding.",
            rich_help_panel=_SOURCE,
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[
        Optional[ReplicasChoice],  # noqa: UP045
        typer.Option(
            help="Compare copies of a tensor whole, by a sample, or not; by default whole, by a sample where "
            "they outweigh the output.",
            rich_help_panel=_SOURCE,
            show_default=False,
        ),
    ] = None,
) -> None: ...


def _target(
    tp: Annotated[Int, _size("Tensor parallel size.", _TARGET)] = None,
    pp: Annotated[Int, _size("Pipeline parallel size.", _TARGET)] = None,
    vpp: Annotated[Int, _size("Virtual pipeline chunks a stage.", _TARGET)] = None,
    ep: Annotated[Int, _size("Expert parallel size.", _TARGET)] = None,
    etp: Annotated[Int, _size("Expert tensor parallel size; that of --tp by default.", _TARGET)] = None,
    layers_per_stage: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N,N,...",
            help="Layers of each pipeline stage (of each chunk with --vpp).",
            rich_help_panel=_TARGET,
            show_default=False,
        ),
    ] = None,
    noop_layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N,N,...",
            help="Positions where a layer does nothing and has no weights.",
            rich_help_panel=_TARGET,
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        Optional[ScheduleChoice],  # noqa: UP045
        typer.Option(
            help="Fold the pipeline as dualpipev does.", rich_help_panel=_TARGET, show_default=False
        ),
    ] = None,
    dialect: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME",
            help="Names and cuts: core-te (default), core-local, legacy, modellink, mindspeed, mindspeed-te.",
            rich_help_panel=_TARGET,
            show_default=False,
        ),
    ] = None,
    experts: Annotated[
        Optional[ExpertsChoice],  # noqa: UP045
        typer.Option(
            help="One module an expert, one tensor an expert, or all in one tensor.",
            rich_help_panel=_TARGET,
            show_default=False,
        ),
    ] = None,
    mla: Annotated[
        Optional[LatentChoice],  # noqa: UP045
        typer.Option(
            help="MindSpeed's latent projections, fused or split.",
            rich_help_panel=_TARGET,
            show_default=False,
        ),
    ] = None,
    moe_tp_extend_ep: Annotated[
        bool,
        typer.Option(
            "--moe-tp-extend-ep",
            help="Spread experts over tensor parallel ranks as well.",
            rich_help_panel=_TARGET,
        ),
    ] = False,
    make_vocab_size_divisible_by: Annotated[
        Int, _size("Pad the vocabulary to a multiple of this times --tp, as the target does.", _TARGET)
    ] = None,
    like: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="RUN",
            help="Take layout, names, dtypes and arguments from this checkpoint.",
            rich_help_panel=_TARGET,
            show_default=False,
        ),
    ] = None,
) -> None: ...


def _sizes(values: dict[str, Any], prefix: str = "") -> dict[str, int]:
    return {n: values[prefix + n] for n in _SIZES if values[prefix + n] is not None}


def _numbers(text: str | None, flag: str) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list such as 3,5", param_hint=flag) from None


def _as_target(values: dict[str, Any]) -> dict[str, Any]:
    def chosen(name: str) -> Any:
        return values[name].value if values[name] is not None else None

    return {
        "sizes": _sizes(values),
        "layers_per_stage": _numbers(values["layers_per_stage"], "--layers-per-stage"),
        "noop_layers": _numbers(values["noop_layers"], "--noop-layers"),
        "schedule": chosen("schedule"),
        "dialect": values["dialect"],
        "experts": chosen("experts"),
        "mla": chosen("mla"),
        "extend_ep": values["moe_tp_extend_ep"],
        "vocab_divisible": values["make_vocab_size_divisible_by"],
        "like": values["like"],
    }


def _as_read(values: dict[str, Any]) -> dict[str, Any]:
    replicas = values["replicas"]
    return {
        "iteration": values["iteration"],
        "vocab_size": values["vocab_size"],
        "replicas": replicas.value if replicas is not None else None,
    }


SOURCE = Group(_source, lambda values: {"source_sizes": _sizes(values)})
STATED = Group(_stated, lambda values: {"source_sizes": _sizes(values, "source_")})
READ = Group(_read, _as_read)
TARGET = Group(_target, _as_target)
