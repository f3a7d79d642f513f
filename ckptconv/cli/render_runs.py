"""Show the saves of a run to people."""

from __future__ import annotations

from ckptconv.api.ls import Saves
from ckptconv.cli.clean import escape
from ckptconv.cli.console import new_table, notes, plural, results, size

__all__ = ["saves"]


def saves(found: Saves) -> None:
    """Print a run's saves, newest last, and what to type next."""
    table = new_table("step", "name", "size", "written", "state", right=("step", "size"))
    for s in found.steps:
        state = (
            "[green]complete[/]" if s.lacking is None else f"[bold red]not complete:[/] {escape(s.lacking)}"
        )
        when = "" if s.modified is None else s.modified[:16].replace("T", " ")
        table.add_row("" if s.step is None else str(s.step), escape(s.name), size(s.bytes), when, state)
    console = results()
    console.print(table)
    whole = sum(s.complete for s in found.steps)
    console.print(f"\n{plural(len(found.steps), 'save')}, {whole} complete; times are UTC")
    console.print(f"[dim]next[/]  {escape(found.command)}", soft_wrap=True)
    notes(tuple(("warning", text) for text in found.notes))
