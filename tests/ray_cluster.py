"""Start a Ray cluster of several nodes on this machine, whose workers a test rules."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptconv.engine.events import Event, Progress

__all__ = ["Cluster"]


class Cluster:
    """A head without cores, two nodes of one core, and the folder by which tests rule their workers.

    Attributes:
        address: For those who belong to it.
        client: For those who do not; its server needs grpcio.
    """

    def __init__(self, control: Path) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self.control = control
        self.calm()
        few = {"object_store_memory": 80 << 20, "include_dashboard": False}
        # A node that is lost is noticed in 3 s.
        checks = {"initial_delay_ms": 0, "period_ms": 500, "failure_threshold": 6}
        system = {f"health_check_{k}": v for k, v in checks.items()}
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        head = {"num_cpus": 0, "_system_config": system, "ray_client_server_port": port, **few}
        self.nodes = Nodes(initialize_head=True, head_node_args=head)
        self.address = self.nodes.address
        self.client = f"ray://127.0.0.1:{port}"
        self.add()
        self.add()

    def add(self) -> Any:
        return self.nodes.add_node(num_cpus=1, object_store_memory=80 << 20)

    def calm(self, slow: float = 0.0, meet: bool = False) -> None:
        """Let workers do as they should, but each task ``slow`` seconds later, or when two nodes have one."""
        for path in self.control.iterdir():
            path.unlink()
        (self.control / "slow").write_text(str(slow))
        (self.control / "attempts").touch()
        if meet:
            (self.control / "meet").touch()

    def attempts(self) -> list[tuple[str, str]]:
        """Return the node and the task of every attempt so far."""
        lines = (self.control / "attempts").read_text().splitlines()
        return [(node, rest) for node, _, rest in (line.partition(" ") for line in lines)]

    def striking(self, node: Any, strike: Callable[[Any], None]) -> tuple[Callable[[Event], None], list[str]]:
        """Return a listener that strikes at a node when it has a task, and the tasks it then had."""
        self.calm(slow=0.3)
        lost: list[str] = []

        def listen(event: Event) -> None:
            """Strike while the node has a task, which is 0.3 s long and has just begun."""
            if isinstance(event, Progress) and not lost:
                while not any(one == node.node_id for one, _ in self.attempts()):
                    time.sleep(0.01)
                lost.extend(task for one, task in self.attempts() if one == node.node_id)
                strike(node)

        return listen, lost

    def again(self) -> Counter[str]:
        """Count the tasks that were begun more than once."""
        return Counter({task: n - 1 for task, n in Counter(t for _, t in self.attempts()).items() if n > 1})
