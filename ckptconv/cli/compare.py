"""Define the commands that compare and explain: ``diff`` and ``explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli.options import WeightsChoice
from ckptconv.cli.printing import print_json

__all__ = ["register", "report"]

# Optional[...] rather than "| None": typer reads these annotations on Python 3.10 too.
Text = Optional[str]  # noqa: UP045
Texts = Optional[list[str]]  # noqa: UP045
_Config = Annotated[
    Text,
    typer.Option(metavar="DIR_OR_HUB_ID", help="Where config.json is, if not beside it.", show_default=False),
]
_Family = Annotated[
    Text,
    typer.Option(
        metavar="NAME_OR_FILE", help="The architecture's table, or a file of one.", show_default=False
    ),
]
_Weights = Annotated[
    Optional[WeightsChoice],  # noqa: UP045
    typer.Option(help="The fp32 masters or the 16-bit weights, where there are both.", show_default=False),
]
_Vocab = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        metavar="N", min=1, help="True size of the vocabulary; rows beyond are padding.", show_default=False
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]


def _diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Any checkpoint.", show_default=False)],
    b: Annotated[
        Path, typer.Argument(metavar="B", help="Any other; errors are relative to it.", show_default=False)
    ],
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
    config: _Config = None,
    family: _Family = None,
    weights: _Weights = None,
    vocab_size: _Vocab = None,
    drop: Annotated[
        Texts, typer.Option(metavar="GLOB", help="Leave tensors out; may be repeated.", show_default=False)
    ] = None,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Write an HTML page as well.", show_default=False),
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Threads; 0 is two a core, at most 8.")
    ] = 0,
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Most memory all buffers together take.")
    ] = "64MiB",
    json: _Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Compare two checkpoints of any formats, tensor by tensor.

    Under Hugging Face's names where those of the two differ; an element type alone does not count.
    Exit code 3 if anything differs beyond the tolerances.
    """
    from ckptconv.api.diff import diff
    from ckptconv.cli import render_compare
    from ckptconv.cli.render_verify import describe, follow
    from ckptconv.numbers.sizes import parse_size
    from ckptconv.report.report import diff_report, write_report

    with follow("comparing", quiet=quiet or json) as listen:
        found = diff(
            a,
            b,
            config=config,
            family=family,
            weights=weights.value if weights else None,
            vocab_size=vocab_size,
            tensors=tensors or (),
            drop=drop or (),
            atol=atol,
            rtol=rtol,
            workers=workers,
            max_memory=parse_size(max_memory),
            listen=listen,
        )
    if report is not None:
        sides = (describe(p, weights=weights.value if weights else None) for p in (a, b))
        write_report(report, diff_report(found.to_dict(), *sides))
    if json:
        print_json(found.to_dict(everything=every))
    elif not quiet:
        render_compare.diff(found, everything=every)
    if not found.ok:
        raise typer.Exit(3)


def _explain(
    source: Annotated[Path, typer.Argument(metavar="CKPT", help="Any checkpoint.", show_default=False)],
    tensor: Annotated[
        str,
        typer.Argument(
            metavar="TENSOR",
            help="Its name in the checkpoint or Hugging Face's; a glob lists.",
            show_default=False,
        ),
    ],
    config: _Config = None,
    family: _Family = None,
    weights: _Weights = None,
    tag: Annotated[
        Text,
        typer.Option(
            metavar="NAME", help="The DeepSpeed tag instead of the one in 'latest'.", show_default=False
        ),
    ] = None,
    vocab_size: _Vocab = None,
    json: _Json = False,
) -> None:
    """Say from which files, ranks, boxes and bytes a tensor comes; only metadata is read."""
    from ckptconv.api.explain import explain
    from ckptconv.cli import render_compare

    found = explain(
        source,
        tensor,
        config=config,
        family=family,
        weights=weights.value if weights else None,
        tag=tag,
        vocab_size=vocab_size,
    )
    if isinstance(found, tuple):
        if json:
            print_json(
                {
                    "matches": [
                        {"name": m.name, "names": m.names, "shape": list(m.spec.shape), "dtype": m.spec.dtype}
                        for m in found
                    ]
                }
            )
        else:
            render_compare.matches(found)
    elif json:
        print_json(found.to_dict())
    else:
        render_compare.explain(found)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "diff",
        epilog="[bold]ckptconv diff megatron-run/ model/[/bold]  did the conversion change anything?\n\n"
        "[bold]ckptconv diff run/checkpoint-100 run/checkpoint-200 --report diff.html[/bold]\n\n"
        "[bold]ckptconv diff a/ b/ --tensors '*norm*' --atol 1e-6 --json[/bold]",
    )(_diff)
    app.command(
        "explain",
        epilog="[bold]ckptconv explain run/ model.layers.0.self_attn.q_proj.weight[/bold]\n\n"
        "[bold]ckptconv explain run/ '*linear_qkv*'[/bold]  which tensors are there?",
    )(_explain)


def report(path: Path, data: dict[str, Any]) -> None:
    """Write the HTML page of what ``inspect --json`` prints."""
    from ckptconv.report.report import inspect_report, write_report

    write_report(path, inspect_report(data))
