"""Define the commands that verify: ``verify-roundtrip`` and ``check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ckptconv.cli.flags import Command, Flags, Source, of_readers, of_writers, owned, pick, sourced
from ckptconv.cli.printing import print_json
from ckptconv.engine.options import Options
from ckptconv.plans.request import Request

if TYPE_CHECKING:
    from ckptconv.plans.plan import Plan

__all__ = ["VERIFYING", "after"]

# The flags of a conversion that decide which values it writes.
_DECIDE = (
    "dtype",
    "drop",
    "keep",
    "rename",
    "lora",
    "lora_alpha",
    "lora_r",
    "adapter",
    "config",
    "assets",
    "family",
    "vocab_size",
    "replicas",
)
# What is about the output where it is MindSpore's, else about the source.
_EITHER = ("strategy", "qkv_layout", "mlp_layout")


def _groups() -> dict[str, Flags]:
    sources = of_readers()
    outputs = sourced(sources, pick(of_writers("mindformers"), _EITHER))
    beside = pick(of_writers("hf"), ("tokenizer", "copy_code", "dequantize", "quantize"))
    fields = {**sources, **beside, **{n: o for n, o in outputs.items() if n not in sources}}
    run = pick(owned(Options), ("workers", "max_memory"))
    return {"fields": {**fields, **pick(owned(Request), _DECIDE)}, "run": run}


def _verify_roundtrip(
    source: Source,
    fields: dict[str, Any],
    run: dict[str, Any],
    out: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads these annotations on Python 3.10 too)
        typer.Argument(
            readable=False,
            metavar="HF",
            help="What SRC was converted to, in any format.",
            show_default=False,
        ),
    ] = None,
    logits: Annotated[
        bool, typer.Option("--logits", help="Also load it with transformers and run a short prompt.")
    ] = False,
    reference: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            readable=False, metavar="DIR", help="A model whose logits it must have.", show_default=False
        ),
    ] = None,
    no_certificate: Annotated[
        bool, typer.Option("--no-certificate", help="Write no ckptconv-verify.json beside the weights.")
    ] = False,
    sha256: Annotated[
        bool,
        typer.Option("--sha256", help="Certify with SHA-256 as well; XXH3 alone takes no time of its own."),
    ] = False,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            readable=False, metavar="FILE", help="Write an HTML page with the outcome.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Compare a model with its source, bit for bit.

    Give the flags the conversion had; what was written is found out. Without HF
    it is proved that SRC survives the round trip, and its copies are compared.
    """
    from ckptconv.api.verify import verify_roundtrip
    from ckptconv.cli import render_verify
    from ckptconv.cli.progress import follow
    from ckptconv.errors import UsageError

    if reference is not None and not logits:
        raise UsageError("--reference compares logits: give --logits with it")
    certify = out is not None and not no_certificate
    if sha256 and not certify:
        raise UsageError("--sha256 is of the certificate: name what was written, without --no-certificate")
    with follow("comparing" if out else "reading", quiet=quiet or json) as follower:
        found = verify_roundtrip(
            source,
            out,
            certify=certify,
            sha256=sha256,
            logits=logits,
            reference=reference,
            listen=follower.listen,
            **run,
            **fields,
        )
    if report is not None:
        from ckptconv.report.report import verify_report, write_report

        there = render_verify.describe(out) if out is not None else None
        here = render_verify.describe(source, **{n: v for n, v in fields.items() if n in of_readers()})
        write_report(report, verify_report(found.to_dict(), found.names, here, there))
    if json:
        print_json(found.to_dict())
    elif not (quiet and found.ok):
        render_verify.result(found, certified=certify and found.ok)
    if not found.ok:
        raise typer.Exit(3)
    if found.logits is not None and found.logits.error is not None:
        if json:
            raise typer.Exit(found.logits.error.exit_code)
        raise found.logits.error  # the bytes are as they must be, but what was asked for was not done


def _check(
    out: Annotated[
        Path, typer.Argument(readable=False, metavar="OUT", help="A certified folder.", show_default=False)
    ],
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Files read at a time; 0 is two a core, at most 8.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Compare files with their certificate; no source needed."""
    from ckptconv.cli import render_verify
    from ckptconv.cli.progress import follow
    from ckptconv.verify.certificate import check

    with follow("checking", quiet=quiet or json) as follower:
        found = check(out, follower.listen, workers)
    if json:
        print_json(found.to_dict())
    elif not (quiet and found.ok):
        render_verify.checked(found)
    if not found.ok:
        raise typer.Exit(3)


def after(
    made: Plan,
    source: Path | None,
    out: Path,
    fields: dict[str, Any],
    how: Options,
    *,
    json: bool,
    quiet: bool,
) -> Any:
    """Verify what a conversion has just written; return what ``--json`` adds to its result.

    Raises:
        MismatchError: if anything differs.
    """
    from ckptconv.api.verify import verify_plan
    from ckptconv.cli import render_verify
    from ckptconv.cli.progress import follow
    from ckptconv.errors import MismatchError

    with follow("comparing", quiet=quiet or json) as follower:
        found = verify_plan(made, source, out, fields, how, follower.listen)
    if not json and not (quiet and found.ok):
        render_verify.result(found, certified=found.ok)
    if not found.ok:
        first = found.mismatches[0]
        raise MismatchError(
            f"{len(found.mismatches)} mismatches between the output and its plan, the first: "
            f"{first.tensor} {first.text}",
            where=first.output.file if first.output is not None else out,
            hint="a disk or memory that fails, or a file changed meanwhile: convert again",
        )
    return found.to_dict()


VERIFYING = (
    Command(
        "verify-roundtrip",
        _verify_roundtrip,
        (
            "ckptconv verify-roundtrip run/ model/  # every element against its source",
            "ckptconv verify-roundtrip run/ model/ --weights model --logits",
            "ckptconv verify-roundtrip model/ megatron-run/  # the other way",
            "ckptconv verify-roundtrip run/  # before converting",
        ),
        _groups,
    ),
    Command("check", _check, ("ckptconv check model/  # are its files those that were verified?",)),
)
