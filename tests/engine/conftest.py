"""Share one Ray cluster among the tests that need one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_workers
from ray_cluster import Cluster
from running import ROOT


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    control = tmp_path_factory.mktemp("control")
    tests, before = Path(ray_workers.__file__).parent, dict(os.environ)
    # What the nodes, and so their workers, are started with.
    os.environ[ray_workers.CONTROL] = str(control)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tests), before.get("PYTHONPATH", "")])
    made = Cluster(control)
    yield made
    made.nodes.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def worker_environment() -> dict[str, str]:
    """What is set in the environment of workers besides that of the nodes."""
    return {}


@pytest.fixture
def cluster(
    nodes: Cluster, worker_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """The cluster, connected to; files are cut into tasks of two blocks."""
    nodes.calm()
    import ray

    from ckptconv.engine import ray as engine

    hook = {"worker_process_setup_hook": "ray_workers.setup", "env_vars": worker_environment}
    ray.init(nodes.address, log_to_driver=False, logging_level=logging.CRITICAL, runtime_env=hook)
    monkeypatch.setattr(engine, "_SHORTEST", 2)
    yield nodes
    ray.shutdown()
