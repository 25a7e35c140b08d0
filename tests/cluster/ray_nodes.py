"""Small Ray clusters on 127.0.0.1: real nodes as processes of this machine, and those who trouble them."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from servers import free_port

from espan_deploy.cluster.actors import LOCAL_STORE_BYTES


class Nodes:
    """A head without cores, and nodes of one core each."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": LOCAL_STORE_BYTES, "node_ip_address": "127.0.0.1"}
        self._small = small
        port = free_port()
        head = {**small, "num_cpus": 0, "include_dashboard": False, "ray_client_server_port": port}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves log files open
            self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.client_address = f"ray://127.0.0.1:{port}"
        self.nodes = [self.add() for _ in range(count)]

    def add(self) -> Any:
        """One node more."""
        return self.cluster.add_node(num_cpus=1, wait=False, **self._small)

    def remove(self, node: Any) -> None:
        """As if its plug were pulled."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    @property
    def address(self) -> str:
        """For --cluster."""
        address: str = self.cluster.address
        return address


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """A cluster, shut down in any case."""
    made = Nodes(count)
    try:
        yield made
    finally:
        made.cluster.shutdown()


def workers() -> list[int]:
    """The processes of this one's clusters that are at a worker's turn."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                title = (entry / "cmdline").read_bytes()
                if title.startswith(b"ray::") and b"Worker.turn" in title and _is_descendant(int(entry.name)):
                    found.append(int(entry.name))
    return found


def _is_descendant(process: int) -> bool:
    while process > 1:
        if process == os.getpid():
            return True
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def kill_one() -> bool:
    """A worker's process, with no time for goodbyes; whether there was one."""
    for process in workers():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            return True
    return False
