#!/usr/bin/env python
"""Measure how `--engine ray` scales over nodes whose disks are slow: see docs/clusters.md.

    python benchmarks/cluster.py plan WORK     a plan of 1 TB; its tasks sleep for as long as their bytes take
    python benchmarks/cluster.py bytes WORK    1 GB that is read and written; reads of each node are slow

Both are stand-ins for nodes with a disk each, on one machine: a Ray cluster of a head without cores and 1, 2
or 4 nodes of one core. `plan` shows what the asking process, Ray and the journal bear; its tasks sleep for
`--scale` of what their bytes take, so that what Ray takes counts twice. `bytes` shows that nodes read
side by side. Results are kept in `--results` (cluster.json).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_RATE = "CKPTCONV_BENCHMARK_RATE"  # bytes a second
_LAYERS = 156  # of Llama-3.1-405B: 1.00 TB in bfloat16
_MAKE = (
    "from pathlib import Path; from sparse import *; "
    "model = MODELS['llama-405b'] | {{'num_hidden_layers': {layers}}}; "
    "write_ranks(Path({out!r}), model, Parallel(8, 12, 1, 1))"
)


def sleep_for_bytes() -> None:
    """Let this worker's tasks sleep for as long as a disk takes for their bytes, and write nothing."""
    import ckptconv.engine.part as part
    from ckptconv.engine.task import Result

    rate = float(os.environ[_RATE])

    def fill(job: Any, loaded: Any, tasks: Any, sinks: Any) -> list[Result]:
        spans = [task.span(loaded.file(task.file).layout.size) for task in tasks]
        time.sleep(sum(hi - lo for lo, hi in spans) / rate)
        return [Result(task, (bytes(8),) * task.blocks, {}, 0) for task in tasks]

    part._fill = fill


def slow_reads_down() -> None:
    """Let each read of this worker take as long as a slow disk does."""
    from ckptconv.places.files import SourceFiles

    rate, inner = float(os.environ[_RATE]), SourceFiles._read

    def read(self: SourceFiles, path: str, offset: int, buffer: memoryview) -> int:
        time.sleep(len(buffer) / rate)
        return inner(self, path, offset, buffer)

    SourceFiles._read = read  # type: ignore[method-assign]


def run(plan: Any, out: Path, count: int, hook: str, rate: float) -> dict[str, float]:
    """Carry a plan out on a cluster of ``count`` nodes; return seconds and the asking process's own."""
    import logging

    import ray
    from ray.cluster_utils import Cluster

    import ckptconv.engine.run as running
    from ckptconv.engine import sink
    from ckptconv.engine.events import Progress
    from ckptconv.engine.options import Options

    os.environ |= {_RATE: str(rate), "PYTHONPATH": f"{_HERE}:{_HERE.parent}"}
    if hook == "sleep_for_bytes":  # the files have no bytes
        running.check_space = lambda *_: None  # type: ignore[attr-defined]
        sink.reserve = os.ftruncate  # type: ignore[attr-defined]
    shutil.rmtree(out, ignore_errors=True)
    few = {"object_store_memory": 80 << 20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **few})
    try:
        for _ in range(count):
            nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
        environment = {"worker_process_setup_hook": f"cluster.{hook}"}
        ray.init(nodes.address, log_to_driver=False, logging_level=logging.CRITICAL, runtime_env=environment)
        # Every node has a worker before the clock runs: a cluster that is there has.
        warm = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(lambda: time.sleep(1))
        ray.get([warm.remote() for _ in range(2 * count)])
        tasks = 0

        def listen(event: object) -> None:
            nonlocal tasks
            tasks += isinstance(event, Progress)

        begin, used = time.perf_counter(), time.process_time()
        running.run(plan, out, Options(engine="ray"), listen)
        return {
            "nodes": count,
            "seconds": round(time.perf_counter() - begin, 2),
            "driver": round(time.process_time() - used, 2),
            "results": tasks,
        }
    finally:
        ray.shutdown()
        nodes.shutdown()
        shutil.rmtree(out, ignore_errors=True)


def source_of(kind: str, work: Path, gigabytes: float) -> Path:
    """Make what is converted, if it is not there."""
    source = work / kind
    if source.exists():
        return source
    work.mkdir(parents=True, exist_ok=True)
    if kind == "plan":
        command = [sys.executable, "-c", _MAKE.format(out=str(source), layers=_LAYERS)]
    else:
        command = [sys.executable, "make_hf.py", str(source), "--gigabytes", str(gigabytes)]
    subprocess.run(command, check=True, cwd=_HERE)
    return source


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("plan", "bytes"))
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--rounds", type=int, default=2, help="of all sizes of the cluster, one after the other"
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rate", type=float, default=1e9, help="bytes a second of a node's disk (plan)")
    parser.add_argument("--scale", type=float, default=0.5, help="of the time that tasks take (plan)")
    parser.add_argument("--slow", type=float, default=15e6, help="bytes a second of a node's disk (bytes)")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--results", type=Path, default=_HERE / "data" / "cluster.json")
    given = parser.parse_args()
    sys.path.insert(0, str(_HERE))

    import ckptconv

    source = source_of(given.kind, given.work.absolute(), given.gigabytes)
    begin = time.perf_counter()
    if given.kind == "plan":
        plan, hook, rate = ckptconv.plan(source, to="hf"), "sleep_for_bytes", given.rate / given.scale
    else:
        plan = ckptconv.plan(source, to="hf", assets=False, dtype="bfloat16", max_shard_size="250MB")
        hook, rate = "slow_reads_down", given.slow
    found: dict[str, Any] = {
        "bytes": plan.bytes_out,
        "files": len(plan.files),
        "planned": round(time.perf_counter() - begin, 1),
        "rate": rate,
        "runs": [],
    }
    for _ in range(given.rounds):
        for count in given.nodes:
            with tempfile.TemporaryDirectory(dir=given.work) as out:
                found["runs"].append(run(plan, Path(out) / "out", count, hook, rate))
            print(found["runs"][-1], flush=True)
    known = json.loads(given.results.read_text()) if given.results.exists() else {}
    given.results.write_text(json.dumps(known | {given.kind: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
