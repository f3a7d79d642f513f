"""Change what Ray's workers do, from files in a folder: slow down, note each attempt, die.

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
    inner = part.carry_out
    node = ray.get_runtime_context().get_node_id()

    def carry_out(task: Any, *arguments: Any, **more: Any) -> Any:
        with open(control / "attempts", "a") as log:
            log.write(f"{node} {task.file} {task.first}\n")
        time.sleep(float((control / "slow").read_text()))
        if (control / "deadly").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (control / "die once").exists():
            (control / "die once").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(task, *arguments, **more)

    part.carry_out = carry_out
