"""Plan conversions and carry them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ckptconv.api.progress import following
from ckptconv.engine.events import Listener
from ckptconv.engine.options import Options, Report
from ckptconv.engine.run import run
from ckptconv.errors import UsageError
from ckptconv.places.places import PathArg, place
from ckptconv.planning.plan import open_like, open_source, plan_checkpoint
from ckptconv.planning.request import ConvertOptions, request_of
from ckptconv.plans.options import made
from ckptconv.plans.plan import Plan

__all__ = ["convert", "plan", "refuse_file_name"]

_FILES: Final = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".hdf5", ".gguf", ".npz", ".json", ".nemo"),
    *(".distcp", ".pdparams", ".msgpack"),
)


def plan(source: PathArg, options: ConvertOptions | None = None, **fields: Any) -> Plan:
    """Plan a conversion from metadata alone; nothing is written.

    Args:
        source: The checkpoint.
        options: What to write.
        **fields: What to write, by keywords: ``to``, and the options of the target and the source (as the
            command line's flags, ``_`` for ``-``). They change those in ``options``.

    Raises:
        UsageError: if an option is unknown, says nothing to this target or source, or has a wrong value.
        PlanError: if a tensor is unmapped, uncovered, doubled or of another shape than the config asks for.
    """
    request = request_of({**(options.fields if options is not None else {}), **fields})
    return plan_checkpoint(open_source(request, place(source)), request, open_like(request))


def convert(
    source: PathArg,
    out: PathArg,
    options: ConvertOptions | None = None,
    *,
    workers: int = 0,
    max_memory: str | int = "96MiB",
    resume: bool = False,
    overwrite: bool = False,
    engine: str = "local",
    address: str | None = None,
    listen: Listener | None = None,
    progress: bool = False,
    **fields: Any,
) -> Report:
    """Convert a checkpoint.

    Args:
        source: The checkpoint.
        out: The output folder; new or empty unless ``overwrite`` or ``resume``.
        options: What to write.
        workers: Threads; 0 is two a core, at most 8. On a cluster tasks at a time.
        max_memory: The most all buffers together may take; on a cluster, those of one task.
        resume: Go on with an interrupted run.
        overwrite: Replace the model in ``out``.
        engine: ``local``, or ``ray`` for a Ray cluster.
        address: The cluster's: ``auto``, ``HOST:PORT``, ``ray://HOST:PORT``, or ``local`` to start one here.
        listen: Called with every event of the run, from any thread.
        progress: Show a bar.
        **fields: What to write, as in `plan`.

    Raises:
        CkptconvError: as `plan` does, or if reading or writing fails; ``out`` then holds no model.
    """
    how = made(
        Options,
        {
            "workers": workers,
            "max_memory": max_memory,
            "resume": resume,
            "overwrite": overwrite,
            "engine": engine,
            "address": address,
        },
    )
    refuse_file_name(place(out))
    made_plan = plan(source, options, **fields)
    with following(listen, "writing", progress=progress) as tell:
        return run(made_plan, place(out), how, tell)


def refuse_file_name(out: Path) -> None:
    """Refuse an output that is called as a file is: a model is a folder of several.

    Raises:
        UsageError: if the name has the end of a file's, and no folder is called so.
    """
    if out.suffix.lower() in _FILES and not out.is_dir():
        folder = out.parent if str(out.parent) != "." else out.with_suffix("")
        raise UsageError(
            f"{out.name} is the name of a file, and a folder is written: weights, config.json, tokenizer",
            where=out,
            hint=f"name a folder: {folder}; the weights in it are called as the target calls them "
            "(--format bin for pytorch_model.bin)",
        )
