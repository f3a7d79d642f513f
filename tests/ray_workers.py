"""Change what Ray's workers do, from files in a folder: slow down, note each attempt, meet, die.

Ray calls `setup` in every worker of a job whose runtime environment names it.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

CONTROL = "CKPTCONV_TEST_CONTROL"


def setup() -> None:
    import ray

    import ckptconv.engine.part as part

    control = Path(os.environ[CONTROL])
    inner = part._fill
    node = ray.get_runtime_context().get_node_id()

    def _fill(job: Any, loaded: Any, tasks: Any, sinks: Any) -> Any:
        task = tasks[0]
        with open(control / "attempts", "a") as log:
            log.write(f"{node} {task.file} {task.first}\n")
        if (control / "meet").exists():
            _meet(control / "attempts")
        time.sleep(float((control / "slow").read_text()))
        if (control / "deadly").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (control / "die once").exists():
            (control / "die once").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(job, loaded, tasks, sinks)

    part._fill = _fill


def _meet(attempts: Path) -> None:
    """Wait until two nodes have a task: a node whose worker starts late gets none of a short run."""
    for _ in range(1200):
        if len({line.split()[0] for line in attempts.read_text().splitlines()}) > 1:
            return
        time.sleep(0.05)
