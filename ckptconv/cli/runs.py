"""Define the command about a run as a whole: ``ls``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckptconv.cli.flags import Command
from ckptconv.cli.printing import print_json

__all__ = ["RUNS"]


def _ls(
    run: Annotated[
        Path, typer.Argument(readable=False, metavar="RUN", help="A run's folder.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """List a run's steps, tags or iterations, newest last.

    Of any format; says which are whole, why others are not, and what to type next.
    """
    from ckptconv.api.ls import ls
    from ckptconv.cli import render_runs

    found = ls(run)
    if json:
        print_json(found.to_dict())
    elif not quiet:
        render_runs.saves(found)


RUNS = (
    Command(
        "ls",
        _ls,
        (
            "ckptconv ls run/",
            "ckptconv ls run/ --json | jq '.steps[] | select(.complete).step'",
        ),
    ),
)
