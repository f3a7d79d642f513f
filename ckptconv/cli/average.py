"""Define the command that averages checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli.carry import carry_out
from ckptconv.cli.flags import Command, Flags, of_readers, of_writers, owned, sourced
from ckptconv.engine.options import Options
from ckptconv.plans.request import Request

__all__ = ["averaging"]

# What a mean cannot be: quantised on the way, or an adapter.
_NEVER = ("quantize", "dequantize")


def _average(
    paths: Annotated[
        list[Path],
        typer.Argument(
            readable=False,
            metavar="A B ... OUT",
            help="Checkpoints of one model, of any formats, and last the folder to write.",
            show_default=False,
        ),
    ],
    fields: dict[str, Any],
    run: dict[str, Any],
    shown: dict[str, Any],
    ratios: Annotated[
        Optional[str],  # noqa: UP045  (typer reads it on Python 3.10 too)
        typer.Option(
            metavar="R,R,...",
            help="What each is multiplied by, together 1; all the same by default.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="last:N|N,M|all",
            help="Average these steps of each run named, in their order.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Average the weights of checkpoints of one model.

    Sums are float32, in the order given. Config and tokenizer are the first one's.
    """
    from ckptconv.api.average import plan_average
    from ckptconv.api.convert import refuse_file_name
    from ckptconv.plans.options import made

    *sources, out = paths
    refuse_file_name(out)
    how = made(Options, run)
    given = None if ratios is None else ratios.split(",")
    plan = plan_average(sources, out, ratios=given, steps=steps, **fields)
    carry_out(plan, None, out, {**fields, "to": "hf"}, how, **shown)


def _groups(shown: Flags) -> dict[str, Flags]:
    own = {n: o for n, o in of_writers("hf").items() if n not in _NEVER}
    fields = {**own, **sourced(of_readers(), own), **owned(Request)}
    return {"fields": fields, "run": owned(Options), "shown": shown}


def averaging(shown: Flags) -> tuple[Command, ...]:
    """Return the commands; ``shown`` are the flags that say what is printed."""
    return (
        Command(
            "average",
            _average,
            (
                "ckptconv average run/ model/ --steps last:5",
                "ckptconv average run/checkpoint-800 run/checkpoint-900 model/",
                "ckptconv average a/ b/ c/ model/ --ratios 0.5,0.3,0.2 --verify",
                "ckptconv average megatron-run/ hf-model/ model/ --dtype bf16",
            ),
            lambda: _groups(shown),
        ),
    )
