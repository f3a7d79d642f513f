"""Carry out a plan: write its files, then give them their names."""

from __future__ import annotations

from pathlib import Path

from ckptconv.engine.events import Discarded, Listener, Started, Stored
from ckptconv.engine.finished import finished
from ckptconv.engine.journal import JOURNAL, Journal
from ckptconv.engine.ledger import Ledger
from ckptconv.engine.options import Options, Report
from ckptconv.engine.output import (
    check_space,
    commit,
    explained,
    is_there,
    kept,
    prepare,
    remove_parts,
)
from ckptconv.engine.registry import find_engine
from ckptconv.places.files import SourceFiles
from ckptconv.places.places import is_remote, place
from ckptconv.plans.plan import Plan

__all__ = ["forget", "run"]


def run(
    plan: Plan,
    folder: Path,
    options: Options,
    listen: Listener | None = None,
    *,
    keep_journal: bool = False,
) -> Report:
    """Write the plan's files into ``folder``.

    With ``keep_journal`` the journal stays, for `forget` to remove, so that what comes after the run (a
    verification) can be interrupted and resumed as well.

    Every file is written as ``NAME.part``, synced, and renamed only when all are whole, replicas have proved
    equal and no input has changed; ``config.json`` and the index come last.

    With ``resume`` a folder that holds the plan's files already is compared with what would be written, and
    left as it is.

    Raises:
        OutputError: if the folder is in use, not empty, or full, or holds the finished run of another plan.
        MismatchError: if replicas differ.
        ClusterError: if a cluster was asked for, and cannot do it.
        InputChangedError: if a source file changed meanwhile.
        InterruptedRunError: on Ctrl-C; what is whole is kept for ``resume``.
    """
    tell = listen or (lambda event: None)
    find_engine(options)  # what it needs is looked for before anything is written
    folder = place(folder)
    if is_remote(folder):
        from ckptconv.engine.remote import run_remotely

        return run_remotely(plan, folder, options, listen, keep_journal=keep_journal)
    digest = plan.digest()
    with explained(folder):
        if (
            options.resume
            and folder.is_dir()
            and (found := finished(plan, folder, options, tell)) is not None
        ):
            return found
        prepare(plan, folder, options, digest)
        with (
            Journal(folder, digest, resume=options.resume, overwrite=options.overwrite) as journal,
            SourceFiles(plan.inputs, options.max_memory // 2) as sources,
            kept(journal, after=keep_journal),
        ):
            report = _run(plan, folder, options, journal, sources, tell)
    tell(Stored(str(folder)))
    return report


def forget(folder: Path) -> None:
    """Remove the journal that a run has kept: all is done."""
    if is_remote(folder := place(folder)):
        from ckptconv.places import objects

        objects.delete(str(folder / JOURNAL))
    else:
        with explained(folder):
            (folder / JOURNAL).unlink(missing_ok=True)


def _run(
    plan: Plan, folder: Path, options: Options, journal: Journal, sources: SourceFiles, tell: Listener
) -> Report:
    if journal.found and not journal.resumed:
        remove_parts(folder)
        if options.resume:
            tell(Discarded(str(folder)))
    done = {f.name for f in plan.files if f.name in journal.done and is_there(folder, f, journal)}
    resumed = sum(f.layout.size for f in plan.files if f.name in done)
    check_space(plan, folder, resumed)
    tell(Started(plan.bytes_out, resumed))
    ledger = Ledger(plan, folder, journal, tell)
    todo = [i for i, f in enumerate(plan.files) if f.name not in done]
    try:
        if todo:
            find_engine(options).run(plan, todo, folder, options, journal, sources, ledger)
    except BaseException:
        ledger.give_up()
        raise
    sources.check()
    removed = commit(plan, folder, journal)
    files = {f.name: journal.done[f.name] for f in plan.files}
    return Report(str(folder), files, plan.bytes_out, resumed, ledger.overflows, tuple(removed))
