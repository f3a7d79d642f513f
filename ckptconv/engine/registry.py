"""List who can carry out a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from ckptconv.engine.journal import Journal
from ckptconv.engine.ledger import Ledger
from ckptconv.engine.options import Options
from ckptconv.errors import UsageError
from ckptconv.places.files import SourceFiles
from ckptconv.plans.plan import Plan
from ckptconv.plugins import Registry
from ckptconv.records import dataclass

__all__ = ["ENGINES", "Engine", "find_engine"]


class Run(Protocol):
    """Write those files of a plan whose numbers are given, below a folder on disk.

    What each task finds goes to the ledger; see `ckptconv.engine.local.run_locally` for the contract.
    """

    def __call__(
        self,
        plan: Plan,
        files: Sequence[int],
        folder: Path,
        options: Options,
        journal: Journal,
        sources: SourceFiles,
        ledger: Ledger,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """Tie an engine's name, for ``--engine``, to the function that carries out the tasks of a plan."""

    name: str
    run: Run


def _locally(
    plan: Plan,
    files: Sequence[int],
    folder: Path,
    options: Options,
    journal: Journal,
    sources: SourceFiles,
    ledger: Ledger,
) -> None:
    from ckptconv.engine.local import run_locally

    run_locally(plan, files, folder, options, sources, ledger)


def _on_ray(
    plan: Plan,
    files: Sequence[int],
    folder: Path,
    options: Options,
    journal: Journal,
    sources: SourceFiles,
    ledger: Ledger,
) -> None:
    from ckptconv.engine.ray import run_on_ray

    run_on_ray(plan, files, folder, options, journal, ledger)


def _own() -> Iterator[Engine]:
    yield Engine("local", _locally)
    yield Engine("ray", _on_ray)


ENGINES: Registry[Engine] = Registry("engines", _own, lambda: Engine)
"""ckptconv's engines, then those of installed plug-ins (entry point ``ckptconv.engines``)."""


def find_engine(options: Options) -> Engine:
    """Return the engine that is asked for.

    Raises:
        UsageError: if there is none of this name, or what it needs is not installed.
    """
    found = ENGINES.find(options.engine)
    if found is None:
        raise UsageError(
            f"there is no engine {options.engine!r}", hint=f"engines: {', '.join(ENGINES.names)}"
        )
    if found.name == "ray" and find_spec("ray") is None:
        raise UsageError("Ray is not installed", hint="pip install 'ckptconv[ray]'")
    if (options.address or "").startswith("ray://") and find_spec("grpc") is None:
        raise UsageError("Ray's client is not installed", hint="pip install 'ray[client]'")
    return found
