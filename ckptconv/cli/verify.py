"""Define the commands that verify: ``verify-roundtrip`` and ``check``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ckptconv.cli.layout import READ, SOURCE
from ckptconv.cli.mindformers import MINDSPORE_VERIFIED
from ckptconv.cli.options import Source, _flags, _parameters
from ckptconv.cli.printing import print_json

if TYPE_CHECKING:
    from ckptconv.engine.options import Options
    from ckptconv.plans.plan import Plan
    from ckptconv.plans.request import ConvertOptions

__all__ = ["after", "register"]

# The flags of a conversion that decide which values it writes.
_DECIDE = (
    "dtype",
    "weights",
    "drop",
    "rename",
    "lora",
    "lora_alpha",
    "lora_r",
    "adapter",
    "config",
    "tokenizer",
    "copy_code",
    "family",
    "tag",
)
_HOW = ("workers", "max_memory", "json", "quiet")


@dataclass(frozen=True, slots=True)
class _Ran:
    """Hold how a verification is to run."""

    workers: int
    max_memory: str
    json: bool
    quiet: bool


def _verifying(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of the conversion: ``fields`` for ``ConvertOptions``, and ``how`` it runs."""
    own = [
        p
        for n, p in inspect.signature(command, eval_str=True).parameters.items()
        if n not in ("fields", "how")
    ]
    common = [p for p in _parameters(_flags) if p.name in _DECIDE or p.name in _HOW]
    groups = {g: _parameters(g.signature) for g in (SOURCE, READ, MINDSPORE_VERIFIED)}

    @wraps(command)
    def wrapper(**values: Any) -> None:
        fields = {n: values.pop(n) for n in _DECIDE}
        how = _Ran(**{n: values.pop(n) for n in _HOW})
        fields["drop"] = tuple(fields["drop"] or ())
        for name in ("dtype", "weights", "lora"):
            fields[name] = fields[name].value if fields[name] is not None else None
        for group, parameters in groups.items():
            fields |= group.read({p.name: values.pop(p.name) for p in parameters})
        command(**values, fields=fields, how=how)

    every = own + [p for parameters in groups.values() for p in parameters] + common
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in every]
    wrapper.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in keyword}
    return wrapper


def _verify_roundtrip(
    source: Source,
    fields: dict[str, Any],
    how: _Ran,
    out: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads these annotations on Python 3.10 too)
        typer.Argument(metavar="[HF]", help="What SRC was converted to, in any format.", show_default=False),
    ] = None,
    logits: Annotated[
        bool, typer.Option("--logits", help="Also load it with transformers and run a short prompt.")
    ] = False,
    reference: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="A model whose logits it must have.", show_default=False),
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
        typer.Option(metavar="FILE", help="Write an HTML page with the outcome.", show_default=False),
    ] = None,
) -> None:
    """Compare a converted model with its source, bit for bit, and certify it.

    Give the flags the conversion had; what was written, and in which dtype, is found out.
    Without HF: prove from metadata that SRC survives the round trip, and compare its copies.
    """
    from ckptconv.api.verify import verify_roundtrip
    from ckptconv.cli import render_verify
    from ckptconv.errors import UsageError
    from ckptconv.numbers.sizes import parse_size

    if reference is not None and not logits:
        raise UsageError("--reference compares logits: give --logits with it")
    certify = out is not None and not no_certificate
    if sha256 and not certify:
        raise UsageError("--sha256 is of the certificate: name what was written, without --no-certificate")
    with render_verify.follow("comparing" if out else "reading", quiet=how.quiet or how.json) as listen:
        found = verify_roundtrip(
            source,
            out,
            certify=certify,
            sha256=sha256,
            logits=logits,
            reference=reference,
            workers=how.workers,
            max_memory=parse_size(how.max_memory),
            listen=listen,
            **fields,
        )
    if report is not None:
        from ckptconv.report.report import verify_report, write_report

        there = render_verify.describe(out) if out is not None else None
        here = render_verify.describe(source, weights=fields["weights"], tag=fields["tag"])
        write_report(report, verify_report(found.to_dict(), found.names, here, there))
    if how.json:
        print_json(found.to_dict())
    elif not (how.quiet and found.ok):
        render_verify.result(found, certified=certify and found.ok)
    if not found.ok:
        raise typer.Exit(3)
    if found.logits is not None and found.logits.error is not None:
        if how.json:
            raise typer.Exit(found.logits.error.exit_code)
        raise found.logits.error  # the bytes are as they must be, but what was asked for was not done


def _check(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A certified folder.", show_default=False)],
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Files read at a time; 0 is two a core, at most 8.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Compare a folder's files with the certificate written with them; the source is not needed."""
    from ckptconv.cli import render_verify
    from ckptconv.verify.certificate import check

    with render_verify.follow("checking", quiet=quiet or json) as listen:
        found = check(out, listen, workers)
    if json:
        print_json(found.to_dict())
    elif not (quiet and found.ok):
        render_verify.checked(found)
    if not found.ok:
        raise typer.Exit(3)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "verify-roundtrip",
        epilog="[bold]ckptconv verify-roundtrip run/ model/[/bold]  every element against its source\n\n"
        "[bold]ckptconv verify-roundtrip run/ model/ --weights model --logits[/bold]\n\n"
        "[bold]ckptconv verify-roundtrip model/ megatron-run/[/bold]  the other way\n\n"
        "[bold]ckptconv verify-roundtrip run/[/bold]  before converting: proof, and the copies compared",
    )(_verifying(_verify_roundtrip))
    app.command(
        "check", epilog="[bold]ckptconv check model/[/bold]  are its files those that were verified?"
    )(_check)


def after(
    made: Plan, source: Path, out: Path, options: ConvertOptions, how: Options, *, json: bool, quiet: bool
) -> Any:
    """Verify what a conversion has just written; return what ``--json`` adds to its result.

    Raises:
        MismatchError: if anything differs.
    """
    from ckptconv.api.verify import verify_plan
    from ckptconv.cli import render_verify
    from ckptconv.errors import MismatchError

    with render_verify.follow("comparing", quiet=quiet or json) as listen:
        found = verify_plan(made, source, out, options, how, listen)
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
