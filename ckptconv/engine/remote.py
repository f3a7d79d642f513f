"""Carry out a plan into a folder behind a URL: nothing of it is visible before all files are whole."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ckptconv.engine.events import Listener, Started, Stored
from ckptconv.engine.ledger import Ledger
from ckptconv.engine.local import run_locally
from ckptconv.engine.options import Options, Report, default_workers
from ckptconv.engine.output import explained, in_order, kept, stale
from ckptconv.engine.remotejournal import RemoteJournal
from ckptconv.engine.remotesink import Outputs, check_spool
from ckptconv.errors import OutputError
from ckptconv.places import objects
from ckptconv.places.files import SourceFiles
from ckptconv.places.places import forget, place
from ckptconv.places.unfinished import JOURNAL
from ckptconv.plans.plan import Plan

__all__ = ["run_remotely"]

_WORKERS = 4  # a worker waits for the network more than it computes


def run_remotely(
    plan: Plan, folder: Path, options: Options, listen: Listener | None, *, keep_journal: bool = False
) -> Report:
    """Write the plan's files into ``folder``, as `engine.run.run` does into one on disk.

    On S3 every file is a multipart upload, completed when all are whole and no input has changed. Elsewhere
    files are written as ``NAME.part`` and renamed then.

    Raises:
        UsageError: if the place cannot be written to.
        OutputError: if the folder is not empty or writing fails.
        MismatchError: if replicas differ.
        ClusterError: if a cluster was asked for, and cannot do it.
        InputChangedError: if a source file changed meanwhile.
        InterruptedRunError: on Ctrl-C; what is whole is kept for ``resume``.
    """
    tell = listen or (lambda event: None)
    objects.writable(str(folder))
    if options.engine == "local":
        options = replace(options, workers=options.workers or max(_WORKERS, default_workers()))
    digest = plan.digest()
    try:
        with explained(folder):
            forget()
            _prepare(plan, folder)
            journal = RemoteJournal(folder, digest, resume=options.resume, overwrite=options.overwrite)
            _check_empty(plan, folder, journal)
            with kept(journal, after=keep_journal):
                report = _run(plan, folder, options, journal, tell)
    finally:
        forget()
    tell(Stored(str(folder)))
    return report


def _prepare(plan: Plan, folder: Path) -> None:
    """Check that the folder is one, and not one that is read from."""
    if folder.is_file():
        raise OutputError("the output is a file, not a folder", where=folder, hint="name a folder")
    inputs = {plan.source, *(i.path.rpartition("/")[0] for i in plan.inputs)}
    if folder.resolve() in {place(i).resolve() for i in inputs if i}:
        raise OutputError(
            "the output folder is the one the checkpoint is read from",
            where=folder,
            hint="choose another folder",
        )


def _check_empty(plan: Plan, folder: Path, journal: RemoteJournal) -> None:
    """Refuse a folder that holds something else."""
    if journal.overwrite or not folder.is_dir():
        return
    ours = {JOURNAL}
    if journal.resumed:
        ours |= {n for f in plan.files for n in (PurePosixPath(f.name).parts[0], f.name + ".part")}
        if journal.naming:
            ours |= {PurePosixPath(a.name).parts[0] for a in plan.assets}
    if others := sorted(p.name for p in folder.iterdir() if p.name not in ours):
        journal.release()
        raise OutputError(
            f"the output folder is not empty ({', '.join(others[:5])})",
            where=folder,
            hint="choose another folder, or give --overwrite to replace the model in it",
        )


def _run(plan: Plan, folder: Path, options: Options, journal: RemoteJournal, tell: Listener) -> Report:
    sizes = {f.name: f.layout.size for f in plan.files}
    with tempfile.TemporaryDirectory(prefix="ckptconv-") as spool:
        outputs = Outputs(plan, folder, Path(spool), journal)
        done = outputs.take_up(sizes)
        resumed = sum(sizes[n] for n in done)
        if options.engine == "local":
            check_spool(Path(spool), [f for f in plan.files if f.name not in done])
        tell(Started(plan.bytes_out, resumed))
        ledger = Ledger(plan, folder, journal, tell)
        todo = [i for i, f in enumerate(plan.files) if f.name not in done]
        try:
            with SourceFiles(plan.inputs, options.max_memory // 2) as sources:
                if todo and options.engine == "ray":
                    from ckptconv.engine.ray import run_on_ray

                    run_on_ray(plan, todo, folder, options, journal, ledger, outputs)
                else:
                    run_locally(plan, todo, folder, options, sources, ledger, outputs)
                sources.check()
            removed = _commit(plan, folder, journal, outputs)
        except BaseException:
            outputs.give_up()
            raise
    files = {f.name: journal.done[f.name] for f in plan.files}
    return Report(str(folder), files, plan.bytes_out, resumed, ledger.overflows, tuple(removed))


def _commit(plan: Plan, folder: Path, journal: RemoteJournal, outputs: Outputs) -> list[str]:
    """Make the files visible: weights first, then assets, the index and the config last.

    Returns:
        The files of an old model that were removed, and that the plan has none in place of.
    """
    names = in_order(plan)
    contents = {a.name: a.content for a in plan.assets}
    gone: list[str] = []
    journal.name_all()
    if journal.overwrite:
        forget()
        for name in stale(plan, folder):
            # One that an earlier run has named already is of the new model.
            if name not in outputs.visible:
                objects.delete(str(folder / name))
            gone += [name] if name not in names else []
    for name in names:
        if name in contents:
            objects.put(str(folder / name), contents[name])
        elif name not in outputs.visible:
            outputs.complete(name)
    return gone
