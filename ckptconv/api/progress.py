"""Show a bar while something runs that Python has asked for, in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckptconv.engine.events import Event, Listener, Progress, Started

__all__ = ["following"]


@contextmanager
def following(listen: Listener | None, what: str, *, progress: bool) -> Iterator[Listener | None]:
    """Return a listener that also moves a bar, which goes away at the end.

    Args:
        listen: Who listens too.
        what: What is done.
        progress: Whether there is to be a bar.
    """
    if not progress:
        yield listen
        return
    import rich.progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: list[bars.TaskID] = []

        def tell(event: Event) -> None:
            if isinstance(event, Started):
                tasks.append(bar.add_task(what, total=event.total, completed=event.resumed))
            elif isinstance(event, Progress) and tasks:
                bar.advance(tasks[-1], event.count)
            if listen is not None:
                listen(event)

        yield tell
