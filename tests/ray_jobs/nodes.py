"""A cluster of several nodes on this machine, in a process of its own.

Of its own, because Ray keeps the token of the first cluster that a process met, and a session of tests meets others.
Run as a program it obeys lines: `add CPUS`, `drain INDEX`, `lose INDEX`; each is answered when it is done.
"""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ANSWER = "cluster: "
ROOT = Path(__file__).parents[2]


class Nodes:
    """A head with one CPU, which asks for a token, and nodes that come and go."""

    def __init__(self, folder: Path) -> None:
        """folder: for the token."""
        (folder / "token").write_text(secrets.token_hex(32))
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        # On a busy machine a node takes longer to come up than the half minute that Ray waits.
        environment = {**os.environ, **self.environment, "RAY_raylet_start_wait_time_s": "180"}
        # A node is dead after five failures of this check, which a slow answer is not: two seconds, not 15.
        environment["RAY_health_check_period_ms"] = "400"
        command = [sys.executable, "-m", "tests.ray_jobs.nodes"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.address = self._answer()
        self.cpus: list[int] = []  # of the nodes that there are, the head left out

    def have(self, *cpus: int) -> None:
        """Nodes of these sizes and no others beside the head: what is there already stays."""
        missing = list(cpus)
        for index in reversed(range(len(self.cpus))):
            if self.cpus[index] in missing:
                missing.remove(self.cpus[index])
            else:
                self.lose(index)
        for num_cpus in missing:
            self.add(num_cpus)

    def add(self, num_cpus: int) -> None:
        """One more node."""
        self._say(f"add {num_cpus}")
        self.cpus.append(num_cpus)

    def lose(self, index: int = 0) -> None:
        """One node less, as when its power fails."""
        self._say(f"lose {index}")
        del self.cpus[index]

    def drain(self, index: int = 0) -> None:
        """Announce that a node will be taken away in a minute, as a cloud announces it for a spot machine."""
        self._say(f"drain {index}")

    def shut_down(self) -> None:
        """Stop all of it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return line.removeprefix(ANSWER).strip()
        raise RuntimeError(f"the cluster's process ended with {self.process.wait()}")


@contextmanager
def started(folder: Path) -> Iterator[Nodes]:
    """A head, to which nodes can be added; jobs that start meanwhile have its token."""
    cluster = Nodes(folder)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in cluster.environment.items():
            patched.setenv(name, value)
        try:
            yield cluster
        finally:
            cluster.shut_down()


def main() -> None:
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    print(f"{ANSWER}{cluster.address}", flush=True)
    nodes = []
    for line in sys.stdin:
        word, number = line.split()
        if word == "add":
            nodes.append(cluster.add_node(num_cpus=int(number)))
        elif word == "drain":
            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            clock = int(1000 * (time.time() + 60))
            accepted, why = GcsClient(address=cluster.address).drain_node(nodes[int(number)].node_id, reason, "", clock)
            assert accepted, why
        else:
            cluster.remove_node(nodes.pop(int(number)), allow_graceful=False)
        print(f"{ANSWER}done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
