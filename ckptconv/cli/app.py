"""Define the commands; each is thin: flags to the API, results to the renderer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli.average import averaging
from ckptconv.cli.carry import carry_out
from ckptconv.cli.compare import COMPARING, write_page
from ckptconv.cli.flags import Command, Flags, Source, Target, of_readers, of_writers, owned, sourced
from ckptconv.cli.help import SETTINGS, examples
from ckptconv.cli.printing import print_json
from ckptconv.cli.push import PUBLISH, PUSHING
from ckptconv.cli.runs import RUNS
from ckptconv.cli.steps import MANY
from ckptconv.cli.verify import VERIFYING
from ckptconv.engine.options import Options
from ckptconv.plans.options import Option, Switch
from ckptconv.plans.request import Request

__all__ = ["build"]

_HOW = "How it runs"
_PRINT = {
    "dry_run": Option(Switch(), "Print the plan; write nothing.", panel=_HOW, common=True),
    "json": Option(Switch(), "Print the plan or the result as JSON.", panel=_HOW),
    "quiet": Option(Switch(), "Print nothing but errors.", ("--quiet", "-q"), panel=_HOW),
    "verify": Option(Switch(), "Compare with the source, and certify.", panel=_HOW, common=True),
}


def build(wanted: str | None, *, everything: bool = False) -> typer.Typer:
    """Return the command line, complete for the command that is wanted: flags take their owners' modules.

    Args:
        wanted: The command that is run.
        everything: Whether its help shows all flags.
    """
    app = typer.Typer(
        name="ckptconv",
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings=SETTINGS,
        pretty_exceptions_enable=False,
        help="Turn training checkpoints into Hugging Face models: no framework, no GPU, bit for bit.",
        epilog=examples(
            (
                "ckptconv inspect run/  # what is this?",
                "ckptconv deepspeed-to-hf run/ model/ --dtype bf16",
                "ckptconv megatron-merge run/ model/ --verify",
                "ckptconv convert model/ run/ --to megatron --tp 4",
            )
        ),
    )
    app.callback(invoke_without_command=True)(_main)
    publishing = {**_PRINT, **PUBLISH}
    looking, converting = _COMMANDS[:1], _COMMANDS[1:-1]
    after = (*averaging(publishing), *VERIFYING, *COMPARING, *PUSHING, _COMMANDS[-1])
    for command in (*looking, *RUNS, *converting, *after):
        command.add_to(app, complete=command.name == wanted, everything=everything)
    return app


def _fields(*readers: str, to: str | None = "hf") -> Callable[[], dict[str, Flags]]:
    """Return the flags of a conversion from these readers' checkpoints, of all with ``to`` None.

    Those of a run, which has several saves, may convert each.
    """

    def groups() -> dict[str, Flags]:
        own = of_writers(*([to] if to else []))
        about = of_readers(*readers) if readers else {}
        about = sourced(of_readers(), own) if to is None else about
        found: dict[str, Flags] = {
            "fields": {**own, **about, **owned(Request)},
            "run": owned(Options),
            "shown": {**_PRINT, **(PUBLISH if to in (None, "hf") else {})},
        }
        return {**found, "many": MANY} if readers or to is None else found

    return groups


def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    if version:
        from ckptconv.version import __version__

        typer.echo(f"ckptconv {__version__}")
        raise typer.Exit


def deepspeed_to_hf(
    source: Source,
    out: Target,
    fields: dict[str, Any],
    run: dict[str, Any],
    shown: dict[str, Any],
    many: dict[str, Any],
) -> None:
    """Convert a DeepSpeed checkpoint to Hugging Face.

    ZeRO stages 0 to 3, mixture of experts, pipelines, AutoTP, universal checkpoints.
    """
    _convert(source, out, "hf", fields, run, shown, many)


def megatron_merge(
    source: Source,
    out: Target,
    fields: dict[str, Any],
    run: dict[str, Any],
    shown: dict[str, Any],
    many: dict[str, Any],
) -> None:
    """Merge a Megatron run's ranks into a Hugging Face model.

    Megatron-LM, megatron-core, ModelLink and MindSpeed-LLM.
    """
    _convert(source, out, "hf", fields, run, shown, many)


_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
_Model = Annotated[
    Path, typer.Argument(readable=False, metavar="HF", help="A Hugging Face model.", show_default=False)
]


def megatron_split(
    source: _Model, out: Target, fields: dict[str, Any], run: dict[str, Any], shown: dict[str, Any]
) -> None:
    """Split a model into the ranks of a Megatron run.

    Megatron-LM, megatron-core, ModelLink and MindSpeed-LLM (--dialect).
    """
    _convert(source, out, "megatron", fields, run, shown, {})


def mindformers_to_hf(
    source: Source,
    out: Target,
    fields: dict[str, Any],
    run: dict[str, Any],
    shown: dict[str, Any],
    many: dict[str, Any],
) -> None:
    """Convert a MindSpore checkpoint to Hugging Face.

    One file, or many ranks with their strategy.
    """
    _convert(source, out, "hf", fields, run, shown, many)


def hf_to_mindformers(
    source: _Model, out: Target, fields: dict[str, Any], run: dict[str, Any], shown: dict[str, Any]
) -> None:
    """Write a model as a MindFormers checkpoint.

    One .ckpt, or one a rank.
    """
    _convert(source, out, "mindformers", fields, run, shown, {})


def convert(
    source: Source,
    out: Target,
    fields: dict[str, Any],
    run: dict[str, Any],
    shown: dict[str, Any],
    many: dict[str, Any],
    to: Annotated[
        Optional[str],  # noqa: UP045  (typer reads it on Python 3.10 too)
        typer.Option(
            metavar="TARGET",
            help="What to write: hf, megatron, torch_dist, dcp, mindformers, or a plug-in's.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert any checkpoint to any format."""
    if to is None:
        from ckptconv.errors import UsageError
        from ckptconv.writers.registry import WRITERS

        others = ", ".join(name for name in WRITERS.names if name != "hf")
        raise UsageError(
            "convert has to know what to write", hint=f"--to hf for a Hugging Face model; also {others}"
        )
    _convert(source, out, to, fields, run, shown, many)


def inspect(
    source: Annotated[
        Path, typer.Argument(readable=False, metavar="CKPT", help="Any checkpoint.", show_default=False)
    ],
    fields: dict[str, Any],
    tensors: Annotated[
        Optional[str],  # noqa: UP045  (typer reads it on Python 3.10 too)
        typer.Option(metavar="GLOB", help="List the tensors whose name matches.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    quiet: _Quiet = False,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(readable=False, metavar="FILE", help="Write an HTML page as well.", show_default=False),
    ] = None,
) -> None:
    """Show what a checkpoint holds, from its metadata alone."""
    from ckptconv.api.model import open as open_model
    from ckptconv.cli import render

    model = open_model(source, **fields)
    if report is not None:
        write_page(report, render.describe(model, None))
    if json:
        print_json(render.describe(model, tensors, source))
    elif not quiet:
        render.inspect(model, tensors, source)


def families(
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    quiet: _Quiet = False,
) -> None:
    """List the architectures that have a table."""
    from dataclasses import asdict

    from ckptconv.api.architectures import architectures
    from ckptconv.cli import render

    found = architectures()
    if json:
        print_json({"families": [asdict(f) for f in found]})
    elif not quiet:
        render.families(found)


def _convert(
    source: Path,
    out: Path,
    to: str,
    fields: dict[str, Any],
    run: dict[str, Any],
    shown: dict[str, Any],
    many: dict[str, Any],
) -> None:
    """Convert one checkpoint, or several saves of a run, each into a folder of its own."""
    from ckptconv.api.convert import plan, refuse_file_name
    from ckptconv.errors import UsageError
    from ckptconv.planning.request import find_writer
    from ckptconv.plans.options import made as made_options

    if shown.get("verify") and not find_writer(to).producer:
        raise UsageError(f"nothing reads what {to} writes, so that --verify cannot", hint="leave it out")
    if to != "hf" and any(name in shown for name in PUBLISH):
        raise UsageError("only Hugging Face models are published", hint="leave out --push-to-hub, or --to hf")
    refuse_file_name(out)

    def one(given: dict[str, Any], folder: Path, how: Options, **more: Any) -> None:
        made = plan(source, to=to, **given)
        carry_out(made, source, folder, {**given, "to": to}, how, **shown, **more)

    if not many:
        one(fields, out, made_options(Options, run))
        return
    if shown.get("push_to_hub"):
        raise UsageError("one model is published at a time", hint="give --step N with --push-to-hub")
    from ckptconv.cli.steps import convert_each

    def each(name: str, folder: Path, *, resume: bool, **more: Any) -> None:
        how = {**run, "resume": True, "overwrite": None} if resume else run
        one({**fields, "step": name}, folder, made_options(Options, how), **more)

    made_options(Options, run)  # what is wrong with them is said once
    convert_each(
        each,
        source,
        out,
        many,
        step=fields.get("step"),
        resume=bool(run.get("resume")),
        json=bool(shown.get("json")),
        quiet=bool(shown.get("quiet")),
    )


_COMMANDS = (
    Command(
        "inspect",
        inspect,
        (
            "ckptconv inspect run/",
            "ckptconv inspect run/ --tensors '*norm*'",
            "ckptconv inspect run/ --json | jq .dtypes",
        ),
        lambda: {"fields": of_readers()},
    ),
    Command(
        "deepspeed-to-hf",
        deepspeed_to_hf,
        (
            "ckptconv deepspeed-to-hf runs/checkpoint-500 model/  # fp32 masters",
            "ckptconv deepspeed-to-hf run/ model/ --dtype bf16 --config org/model",
            "ckptconv deepspeed-to-hf run/global_step9 model/ --weights model",
            "ckptconv deepspeed-to-hf run/ model/ --dry-run  # what, and why",
        ),
        _fields("deepspeed"),
    ),
    Command(
        "megatron-merge",
        megatron_merge,
        (
            "ckptconv megatron-merge run/ model/  # config.json from the arguments",
            "ckptconv megatron-merge run/ model/ --tp 4 --pp 2 --config org/model",
            "ckptconv megatron-merge run/iter_0001000 model/ --tokenizer org/model",
        ),
        _fields("megatron", "torch_dist"),
    ),
    Command(
        "megatron-split",
        megatron_split,
        (
            "ckptconv megatron-split model/ run/ --tp 4 --pp 2",
            "ckptconv megatron-split model/ run/ --tp 8 --ep 4 --dialect mindspeed",
            "ckptconv megatron-split model/ run/ --like old-run/",
        ),
        _fields(to="megatron"),
    ),
    Command(
        "mindformers-to-hf",
        mindformers_to_hf,
        (
            "ckptconv mindformers-to-hf llama.ckpt model/ --config org/model",
            "ckptconv mindformers-to-hf output/ model/ --yaml run.yaml",
            "ckptconv mindformers-to-hf output/ model/ --strategy output/strategy",
        ),
        _fields("mindspore"),
    ),
    Command(
        "hf-to-mindformers",
        hf_to_mindformers,
        (
            "ckptconv hf-to-mindformers model/ out/  # out/checkpoint.ckpt",
            "ckptconv hf-to-mindformers model/ out/ --like old.ckpt",
            "ckptconv hf-to-mindformers model/ out/ --strategy output/strategy",
        ),
        _fields(to="mindformers"),
    ),
    Command(
        "convert",
        convert,
        (
            "ckptconv convert run/ model/ --to hf",
            "ckptconv convert model.pt model/ --to hf --config org/model",
            "ckptconv convert model/ smaller/ --to hf --dtype bf16",
            "ckptconv convert run/ other/ --to megatron --tp 2 --pp 4",
        ),
        _fields(to=None),
    ),
    Command(
        "families",
        families,
        ("ckptconv families", "ckptconv families --json | jq '.families[].model_types[]'"),
    ),
)
