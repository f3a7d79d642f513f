"""Define the commands; each is thin: flags to the API, results to the renderer."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli import compare
from ckptconv.cli.layout import READ, SOURCE, STATED, TARGET
from ckptconv.cli.mindformers import MINDFORMERS_SOURCE, MINDFORMERS_TARGET, MINDSPORE
from ckptconv.cli.options import EngineChoice, Flags, Source, Target, WeightsChoice, converting
from ckptconv.cli.printing import print_json
from ckptconv.cli.verify import after, register

__all__ = ["app"]

app = typer.Typer(
    name="ckptconv",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Turn training checkpoints into Hugging Face models: no framework, no GPU, bit for bit.",
    epilog="Example: [bold]ckptconv deepspeed-to-hf runs/checkpoint-500 model/[/bold]",
)


class To(str, Enum):
    """Targets of ``convert``."""

    hf = "hf"
    megatron = "megatron"
    torch_dist = "torch_dist"
    dcp = "dcp"
    mindformers = "mindformers"


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    if version:
        from ckptconv.version import __version__

        typer.echo(f"ckptconv {__version__}")
        raise typer.Exit


@app.command(
    "deepspeed-to-hf",
    epilog="[bold]ckptconv deepspeed-to-hf runs/checkpoint-500 model/[/bold]  fp32 masters\n\n"
    "[bold]ckptconv deepspeed-to-hf run/ model/ --dtype bfloat16 --config meta-llama/Llama-3.1-8B[/bold]\n\n"
    "[bold]ckptconv deepspeed-to-hf run/global_step9 model/ --weights model[/bold]\n\n"
    "[bold]ckptconv deepspeed-to-hf run/ model/ --dry-run[/bold]  what would be written, and why",
)
@converting()
def deepspeed_to_hf(source: Source, out: Target, flags: Flags, fields: dict[str, Any]) -> None:
    """Convert a DeepSpeed checkpoint of any kind into a Hugging Face model.

    ZeRO stages 0 to 3, mixture of experts, pipelines, AutoTP, universal checkpoints.
    """
    _convert(source, out, "hf", flags, fields)


@app.command(
    "megatron-merge",
    epilog="[bold]ckptconv megatron-merge run/ model/[/bold]  config.json from the arguments\n\n"
    "[bold]ckptconv megatron-merge run/ model/ --tp 4 --pp 2 --config org/model[/bold]  sizes are checked\n\n"
    "[bold]ckptconv megatron-merge run/iter_0001000 model/ --vocab-size 32000 --tokenizer org/model[/bold]",
)
@converting(SOURCE, READ)
def megatron_merge(source: Source, out: Target, flags: Flags, fields: dict[str, Any]) -> None:
    """Merge the ranks of a Megatron, ModelLink or MindSpeed run into a Hugging Face model."""
    _convert(source, out, "hf", flags, fields)


@app.command(
    "megatron-split",
    epilog="[bold]ckptconv megatron-split model/ run/ --tp 4 --pp 2[/bold]\n\n"
    "[bold]ckptconv megatron-split model/ run/ --tp 8 --ep 4 --dialect mindspeed[/bold]\n\n"
    "[bold]ckptconv megatron-split model/ run/ --like old-run/[/bold]  layout, names and arguments of a run",
)
@converting(TARGET)
def megatron_split(
    source: Annotated[Path, typer.Argument(metavar="HF", help="A Hugging Face model.", show_default=False)],
    out: Target,
    flags: Flags,
    fields: dict[str, Any],
) -> None:
    """Split a model into the ranks of a Megatron, ModelLink or MindSpeed run."""
    _convert(source, out, "megatron", flags, fields)


@app.command(
    "mindformers-to-hf",
    epilog="[bold]ckptconv mindformers-to-hf llama.ckpt model/ --config org/model[/bold]\n\n"
    "[bold]ckptconv mindformers-to-hf output/ model/ --yaml run.yaml[/bold]  config.json from the run\n\n"
    "[bold]ckptconv mindformers-to-hf output/checkpoint model/ --strategy output/strategy --check[/bold]",
)
@converting(MINDFORMERS_SOURCE, READ)
def mindformers_to_hf(source: Source, out: Target, flags: Flags, fields: dict[str, Any]) -> None:
    """Convert a MindSpore or MindFormers checkpoint, one file or many ranks, into a Hugging Face model."""
    _convert(source, out, "hf", flags, fields)


@app.command(
    "hf-to-mindformers",
    epilog="[bold]ckptconv hf-to-mindformers model/ out/[/bold]  out/checkpoint.ckpt\n\n"
    "[bold]ckptconv hf-to-mindformers model/ out/ --like old.ckpt[/bold]  names and packing of another\n\n"
    "[bold]ckptconv hf-to-mindformers model/ out/ --strategy output/strategy[/bold]  a folder a rank",
)
@converting(MINDFORMERS_TARGET)
def hf_to_mindformers(
    source: Annotated[Path, typer.Argument(metavar="HF", help="A Hugging Face model.", show_default=False)],
    out: Target,
    flags: Flags,
    fields: dict[str, Any],
) -> None:
    """Write a model as MindFormers names and packs it: one .ckpt, or one a rank."""
    _convert(source, out, "mindformers", flags, fields)


@app.command(
    epilog="[bold]ckptconv convert run/ model/ --to hf[/bold]\n\n"
    "[bold]ckptconv convert model.pt model/ --to hf --config org/model[/bold]  a plain state dict\n\n"
    "[bold]ckptconv convert model/ smaller/ --to hf --dtype bfloat16[/bold]  rounded\n\n"
    "[bold]ckptconv convert run/ other/ --to megatron --tp 2 --pp 4[/bold]  from any layout to any other",
)
@converting(STATED, READ, TARGET, MINDSPORE)
def convert(
    source: Source,
    out: Target,
    to: Annotated[To, typer.Option(help="What to write.", show_default=False)],
    flags: Flags,
    fields: dict[str, Any],
) -> None:
    """Convert any checkpoint ckptconv reads; what it is is found out."""
    _convert(source, out, to.value, flags, fields)


@app.command(
    epilog="[bold]ckptconv inspect run/[/bold]\n\n"
    "[bold]ckptconv inspect run/ --tensors '*norm*'[/bold]\n\n"
    "[bold]ckptconv inspect run/ --json | jq .dtypes[/bold]",
)
def inspect(
    source: Annotated[Path, typer.Argument(metavar="CKPT", help="Any checkpoint.", show_default=False)],
    tensors: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="GLOB", help="List the tensors whose name matches.", show_default=False),
    ] = None,
    weights: Annotated[
        Optional[WeightsChoice],  # noqa: UP045
        typer.Option(help="Look at the fp32 masters or the 16-bit weights.", show_default=False),
    ] = None,
    tag: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME", help="The DeepSpeed tag instead of the one in 'latest'.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Write an HTML page as well.", show_default=False),
    ] = None,
) -> None:
    """Show what a checkpoint holds and which rank holds it, from its metadata alone."""
    import ckptconv
    from ckptconv.cli import render

    model = ckptconv.open(source, weights=weights.value if weights else None, tag=tag)
    if report is not None:
        compare.report(report, render.describe(model, None))
    if json:
        print_json(render.describe(model, tensors))
    else:
        render.inspect(model, tensors)


def _convert(source: Path, out: Path, to: str, flags: Flags, fields: dict[str, Any]) -> None:
    from ckptconv.api.convert import plan
    from ckptconv.cli import render
    from ckptconv.engine.options import Options
    from ckptconv.engine.run import forget, run
    from ckptconv.errors import UsageError
    from ckptconv.numbers.sizes import parse_size
    from ckptconv.plans.request import ConvertOptions

    if flags.resume and flags.overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    options = ConvertOptions(
        to=to,
        dtype=flags.dtype.value,
        format=flags.format.value if flags.format else None,
        max_shard_size=flags.max_shard_size,
        weights=flags.weights.value if flags.weights else None,
        tag=flags.tag,
        config=flags.config,
        tokenizer=flags.tokenizer,
        family=flags.family,
        assets=not flags.no_assets,
        drop=flags.drop,
        rename=flags.rename,
        lora=flags.lora.value if flags.lora else None,
        lora_alpha=flags.lora_alpha,
        lora_r=flags.lora_r,
        adapter=flags.adapter,
        copy_code=flags.copy_code,
        dequantize=flags.dequantize,
        **fields,
    )
    how = Options(
        flags.workers,
        parse_size(flags.max_memory),
        flags.resume,
        flags.overwrite,
        flags.engine.value,
        flags.address,
    )
    made = plan(source, options)
    if flags.dry_run:
        print_json(made.to_dict()) if flags.json else render.plan(made, how)
        return
    with render.watch(made, quiet=flags.quiet or flags.json) as watch:
        report = run(made, out, how, watch.listen, keep_journal=flags.verify)
    if not flags.json and not flags.quiet:
        render.done(made, report, watch.seconds)
    more = {}
    if flags.verify:
        here = how if flags.engine is EngineChoice.local else Options(0, how.max_memory)
        try:
            more["verify"] = after(made, source, out, options, here, json=flags.json, quiet=flags.quiet)
        except KeyboardInterrupt:
            raise  # --resume verifies what is written
        except BaseException:
            forget(out)
            raise
        forget(out)
    if flags.json:
        print_json({**render.result(made, report, watch.seconds), **more})


register(app)
compare.register(app)
