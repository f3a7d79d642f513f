"""Define ``push``, and the flags that publish what a conversion has written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli.flags import Command, Flags
from ckptconv.cli.printing import print_json
from ckptconv.plans.options import Option, Switch, Text

__all__ = ["PUBLISH", "PUSHING", "publish", "ready"]

_PANEL = "Publishing"

PUBLISH: Flags = {
    "push_to_hub": Option(
        Text("USER/MODEL"), "Verify the result, then publish it on the hub.", panel=_PANEL, common=True
    ),
    "private": Option(Switch(), "With --push-to-hub: only its owners see it.", panel=_PANEL),
    "revision": Option(
        Text("BRANCH"), "With --push-to-hub: the branch, made if it is not there.", panel=_PANEL
    ),
}


def ready(push_to_hub: str | None, *, private: bool, revision: str | None) -> None:
    """Refuse what cannot be published before anything is converted.

    Raises:
        UsageError: if flags are given without what they are about, or it is no name of a repository.
        CkptconvError: if nobody is logged in.
    """
    from ckptconv.assets.publish import repository
    from ckptconv.errors import UsageError

    if push_to_hub is not None:
        repository(push_to_hub, private=private, revision=revision).knock()
    elif private or revision is not None:
        flag = "--private" if private else "--revision"
        raise UsageError(f"{flag} is about what is published", hint="give --push-to-hub USER/MODEL with it")


def publish(
    out: Path, to: str, *, private: bool, revision: str | None, json: bool, quiet: bool
) -> dict[str, Any]:
    """Publish a folder and say where it is; return what ``--json`` prints of it."""
    from ckptconv.api.push import push
    from ckptconv.cli.clean import escape
    from ckptconv.cli.console import plural, results, size
    from ckptconv.cli.progress import follow

    with follow("sending", quiet=quiet or json) as follower:
        found = push(out, to, private=private, revision=revision, listen=follower.listen)
    if not json and not quiet:
        card = ", with a model card" if found.card else ""
        results().print(
            f"[bold green]published[/] {plural(len(found.files), 'file')}, {size(found.bytes)}{card}: "
            f"{escape(found.url)}",
            soft_wrap=True,
        )
    return found.to_dict()


def _push(
    out: Annotated[
        Path, typer.Argument(readable=False, metavar="OUT", help="A verified model.", show_default=False)
    ],
    to: Annotated[
        str, typer.Argument(metavar="USER/MODEL", help="The repository on the hub.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Only its owners see it.")] = False,
    revision: Annotated[
        Optional[str],  # noqa: UP045  (typer reads it on Python 3.10 too)
        typer.Option(metavar="BRANCH", help="The branch, made if it is not there.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Publish a verified model on the hub.

    Its files are compared with their certificate first. What the hub has is not sent again.
    """
    found = publish(out, to, private=private, revision=revision, json=json, quiet=quiet)
    if json:
        print_json(found)


PUSHING = (
    Command(
        "push",
        _push,
        (
            "ckptconv push model/ user/model",
            "ckptconv push model/ org/model --private --revision step-1000",
            "HF_ENDPOINT=https://hub.example.org ckptconv push model/ user/model",
        ),
    ),
)
