"""Define the commands that compare and explain: ``diff`` and ``explain``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ckptconv.cli.flags import Command, Flags, of_readers, owned, pick
from ckptconv.cli.printing import print_json
from ckptconv.engine.options import Options
from ckptconv.plans.options import Option, Text
from ckptconv.plans.request import Request

if TYPE_CHECKING:
    from ckptconv.api.explain import Match

__all__ = ["COMPARING", "write_page"]

# Optional[...] rather than "| None": typer reads these annotations on Python 3.10 too.
Texts = Optional[list[str]]  # noqa: UP045
_Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def _diff(
    a: Annotated[
        Path, typer.Argument(readable=False, metavar="A", help="Any checkpoint.", show_default=False)
    ],
    b: Annotated[
        Path,
        typer.Argument(
            readable=False, metavar="B", help="Any other; errors are relative to it.", show_default=False
        ),
    ],
    fields: dict[str, Any],
    run: dict[str, Any],
    tensors: Annotated[
        Texts,
        typer.Option(
            metavar="GLOB", help="Compare tensors whose name matches; may be repeated.", show_default=False
        ),
    ] = None,
    atol: Annotated[float, typer.Option(metavar="X", help="Absolute difference allowed.")] = 0.0,
    rtol: Annotated[
        float, typer.Option(metavar="X", help="Difference allowed relative to B's values.")
    ] = 0.0,
    every: Annotated[bool, typer.Option("--all", help="List all, also tensors that are equal.")] = False,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(readable=False, metavar="FILE", help="Write an HTML page as well.", show_default=False),
    ] = None,
    json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Compare two checkpoints, tensor by tensor.

    Under Hugging Face's names where those of the two differ; an element type alone does not count.
    Exit code 3 if anything differs beyond the tolerances.
    """
    from ckptconv.api.diff import diff, steps_of
    from ckptconv.cli import render_compare
    from ckptconv.cli.progress import follow
    from ckptconv.cli.render_verify import describe
    from ckptconv.report.report import diff_report, write_report

    with follow("comparing", quiet=quiet or json) as follower:
        found = diff(
            a,
            b,
            tensors=tensors or (),
            atol=atol,
            rtol=rtol,
            listen=follower.listen,
            **run,
            **fields,
        )
    if report is not None:
        steps = steps_of(a, b, fields.get("step"), fields.get("step_b"))
        sides = (describe(p, step=s) for p, s in zip((a, b), steps, strict=True))
        write_report(report, diff_report(found.to_dict(), *sides))
    if json:
        print_json(found.to_dict(everything=every))
    elif not quiet:
        render_compare.diff(found, everything=every)
    if not found.ok:
        raise typer.Exit(3)


def _explain(
    source: Annotated[
        Path, typer.Argument(readable=False, metavar="CKPT", help="Any checkpoint.", show_default=False)
    ],
    tensor: Annotated[
        str,
        typer.Argument(
            metavar="TENSOR",
            help="Its name in the checkpoint or Hugging Face's; a glob lists.",
            show_default=False,
        ),
    ],
    fields: dict[str, Any],
    json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Say from which files, ranks and bytes a tensor comes."""
    from ckptconv.api.explain import explain
    from ckptconv.cli import render_compare

    found = explain(source, tensor, **fields)
    if json:
        print_json({"matches": [_match(m) for m in found]} if isinstance(found, tuple) else found.to_dict())
    elif quiet:
        return
    elif isinstance(found, tuple):
        render_compare.matches(found)
    else:
        render_compare.explain(found)


def _match(one: Match) -> dict[str, Any]:
    return {"name": one.name, "names": one.names, "shape": list(one.spec.shape), "dtype": one.spec.dtype}


def _said() -> dict[str, Option]:
    return pick(owned(Request), ("config", "family", "vocab_size"))


def _of_diff() -> dict[str, Flags]:
    own = of_readers()
    steps = {
        "step": replace(own["step"], help="Compare this save of a run, not the newest."),
        "step_b": Option(
            Text("STEP"),
            "This one of B, where it is another.",
            ("--step-b", "--iteration-b", "--tag-b"),
            panel=own["step"].panel,
            common=True,
        ),
    }
    fields = {**steps, **_said(), **pick(own, ("weights",)), **pick(owned(Request), ("drop",))}
    return {"fields": fields, "run": pick(owned(Options), ("workers", "max_memory"))}


def write_page(path: Path, data: dict[str, Any]) -> None:
    """Write the HTML page of what ``inspect --json`` prints."""
    from ckptconv.report.report import inspect_report, write_report

    write_report(path, inspect_report(data))


COMPARING = (
    Command(
        "diff",
        _diff,
        (
            "ckptconv diff megatron-run/ model/",
            "ckptconv diff run/ run/ --step 100 --step-b 200 --report diff.html",
            "ckptconv diff run/ model/ --step 100",
            "ckptconv diff a/ b/ --tensors '*norm*' --atol 1e-6 --json",
        ),
        _of_diff,
    ),
    Command(
        "explain",
        _explain,
        (
            "ckptconv explain run/ model.layers.0.self_attn.q_proj.weight",
            "ckptconv explain run/ '*linear_qkv*'",
        ),
        lambda: {"fields": {**of_readers(), **_said()}},
    ),
)
