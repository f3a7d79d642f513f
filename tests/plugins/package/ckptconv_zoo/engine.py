"""An engine: the threads of this process, one after the other."""

from dataclasses import replace

from ckptconv.engine.local import run_locally
from ckptconv.engine.registry import Engine


def run(plan, files, folder, options, journal, sources, ledger):
    run_locally(plan, files, folder, replace(options, workers=1, engine="local"), sources, ledger)


ENGINE = Engine("zoo", run)
