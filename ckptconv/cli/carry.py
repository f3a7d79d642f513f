"""Carry out a plan for the command line: print it, or write it, and verify what was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptconv.cli.printing import print_json
from ckptconv.cli.push import publish, ready
from ckptconv.cli.verify import after
from ckptconv.engine.options import Options

if TYPE_CHECKING:
    from ckptconv.plans.plan import Plan

__all__ = ["carry_out"]


def carry_out(
    made: Plan,
    source: Path | None,
    out: Path,
    fields: Mapping[str, Any],
    how: Options,
    *,
    dry_run: bool = False,
    json: bool = False,
    quiet: bool = False,
    verify: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    revision: str | None = None,
    label: str = "",
    emit: Callable[[dict[str, Any]], None] = print_json,
) -> None:
    """Write what is planned, and say so.

    Args:
        made: The plan.
        source: The checkpoint; None where there are several.
        out: The folder to write.
        fields: The options of the conversion, as they were given, and ``to``.
        how: How it runs.
        dry_run: Print the plan instead.
        json: Print as JSON.
        quiet: Print nothing but errors.
        verify: Compare what was written with the source, and certify it.
        push_to_hub: Publish it there when it is verified.
        private: Only its owners are to see it.
        revision: The branch.
        label: What stands before what is being done, where several checkpoints are converted.
        emit: Takes what is to be printed as JSON.
    """
    from ckptconv.cli import render
    from ckptconv.cli.console import keep_notes
    from ckptconv.cli.progress import follow
    from ckptconv.engine import run as engine

    ready(push_to_hub, private=private, revision=revision)
    verify = verify or push_to_hub is not None
    if dry_run:
        emit(made.to_dict()) if json else render.plan(made, how)
        return
    if not (quiet or json):
        keep_notes(made.notes)
    with follow(f"{label}writing", quiet=quiet or json) as watch:
        report = engine.run(made, out, how, watch.listen, keep_journal=verify)
    if not json and not quiet:
        render.done(made, report, watch.seconds, last=not verify)
    more = {}
    if verify:
        here = how if how.engine == "local" else Options(workers=0, max_memory=how.max_memory)
        try:
            more["verify"] = after(made, source, out, dict(fields), here, json=json, quiet=quiet)
        except KeyboardInterrupt:
            raise  # --resume verifies what is written
        except BaseException:
            engine.forget(out)
            raise
        engine.forget(out)
    if push_to_hub is not None:
        more["push"] = publish(out, push_to_hub, private=private, revision=revision, json=json, quiet=quiet)
    if json:
        emit({**render.result(made, report, watch.seconds), **more})
