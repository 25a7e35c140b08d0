"""Ray: how to reach a cluster, and workers as its actors. Nothing is decided here."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from espan_deploy.cluster.foreman import Answer, DiedError
from espan_deploy.cluster.worker import Hello, Orders, Worker
from espan_deploy.errors import BackendUnavailableError, EspanDeployError

LOCAL = "auto"
"""As an address: the cluster that this machine belongs to, else one of this machine alone, for this run."""

NO_CLUSTER = "local"
"""As an address, RAY_ADDRESS too, in Ray's own words: one of this machine alone."""

LOCAL_STORE_BYTES = 78 << 20
"""Ray's least: pixels never go through it."""

CLIENT_PORT = 10001
"""Of ray:// where none is named."""

ANSWER_SECONDS = 10.0

MISSING = "No module named 'espan_deploy'"


@dataclass(frozen=True)
class Resources:
    """What is asked of a cluster.

    actors: how many; None for as many as there is room for, as nodes come and go. cpus, gpus: for each; None for a
    node's cores, split where several actors share the node, and for one GPU where there are any.
    """

    actors: int | None = None
    cpus: int | None = None
    gpus: float | None = None


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, by what it has."""

    id: str
    cpus: int
    gpus: float


@dataclass(frozen=True)
class Size:
    """Of one actor."""

    cpus: int
    gpus: float


class ActorWorker(Worker):
    """A worker that asks Ray who and how large it is."""

    def hello(self) -> Hello:
        """With its node, and the cores that it was given."""
        import ray

        context: Any = ray.get_runtime_context()
        given = int(context.get_assigned_resources().get("CPU", 0))
        if given and not self.orders.settings.threads:
            self.threads = max(1, min(self.threads, given))
        return replace(super().hello(), node=context.get_node_id(), threads=self.threads)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Ray, connected to a cluster: ray://HOST:PORT, HOST:PORT, or LOCAL.

    Raises BackendUnavailableError where Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as exc:
        raise BackendUnavailableError(
            "--cluster needs Ray, which is not installed", hint="pip install 'espan-deploy[cluster]'"
        ) from exc
    try:
        with _own_signals():
            _connect(ray, address)
    except (OSError, RuntimeError, ValueError, AssertionError) as exc:
        raise BackendUnavailableError(
            f"cannot reach a Ray cluster at {address}: {' '.join(str(exc).split())[:300]}",
            hint="name a running one as ray://HOST:10001, or auto for this machine's, or for this machine alone",
        ) from exc
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """What the caller does about signals stands: Ray would end the process at a polite kill."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    with contextlib.suppress(ValueError):  # not the main thread, where Ray leaves them alone
        for number, handler in before.items():
            signal.signal(number, handler)


def _connect(ray: Any, address: str) -> None:
    """To a cluster that answers; Ray itself would wait for minutes, and then end the process."""
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "FATAL"}
    if address != LOCAL:
        _knock(address)
        ray.init(address=address, **common)
        return
    known = _known_cluster()
    if known != NO_CLUSTER:
        with contextlib.suppress(OSError):
            _knock(known)
            ray.init(address=known or "auto", **common)
            return
    ray.init(
        address=NO_CLUSTER,
        include_dashboard=False,
        object_store_memory=LOCAL_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        **common,
    )


def _known_cluster() -> str:
    """What this machine says its cluster is: RAY_ADDRESS, or the note that Ray leaves when it starts; "" for none."""
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto"):
        with contextlib.suppress(OSError):
            return note.read_text().strip()
    return address


def _knock(address: str) -> None:
    """Raise OSError where nobody answers."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname:
        socket.create_connection((parts.hostname, parts.port or CLIENT_PORT), ANSWER_SECONDS).close()


class RayActors:
    """Workers as actors. Only while connected. kind: the class that they are of."""

    def __init__(self, orders: Orders, resources: Resources, kind: type[Worker] = ActorWorker) -> None:
        import ray

        self.resources = resources
        self._orders = ray.put(orders)
        self._class: Any = ray.remote(max_restarts=0, max_task_retries=0)(kind)
        self._handles: dict[str, Any] = {}
        self._calls: dict[Any, str] = {}
        self._sizes: dict[str, Size] = {}

    def wanted(self) -> dict[str, int]:
        """As the resources say: on the nodes there are; what is asked for beyond them waits for those to come."""
        import ray

        listed: Any = ray.nodes  # without types
        nodes = [
            Node(node["NodeID"], int(found.get("CPU", 0)), found.get("GPU", 0.0))
            for node in listed()
            if node["Alive"]
            for found in [node["Resources"]]
        ]
        places, self._sizes = placed(nodes, self.resources)
        return places

    def start(self, worker: str, node: str) -> None:
        """An actor of its size, on its node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        size = self._sizes[node]
        strategy = NodeAffinitySchedulingStrategy(node, soft=False) if node else "SPREAD"
        options = self._class.options(num_cpus=size.cpus, num_gpus=size.gpus, scheduling_strategy=strategy)
        self._handles[worker] = options.remote(self._orders, worker)

    def call(self, worker: str, method: str, *arguments: object) -> None:
        """As a task of the actor."""
        self._calls[getattr(self._handles[worker], method).remote(*arguments)] = worker

    def answers(self, seconds: float) -> list[Answer]:
        """One at least, if there is one within so long, and whatever else is there."""
        import ray

        if not self._calls:
            time.sleep(seconds)
            return []
        ready, waiting = ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        if ready and waiting:
            ready += ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
        return [_answer(self._calls.pop(call), call) for call in ready]

    def end(self, worker: str) -> None:
        """Kill it."""
        import ray

        handle = self._handles.pop(worker, None)
        if handle is not None:
            ray.kill(handle)
        for call in [call for call, name in self._calls.items() if name == worker]:
            del self._calls[call]


def _answer(worker: str, call: Any) -> Answer:
    """What came of a call. A worker that is out of reach counts as dead: it is killed, and its files are retried."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return Answer(worker, ray.get(call))
    except RayTaskError as exc:
        cause = exc.cause
        if isinstance(cause, EspanDeployError):
            return Answer(worker, failure=cause)
        return Answer(worker, failure=DiedError(_short(cause)))
    except RayError as exc:
        if MISSING in str(exc):
            return Answer(worker, failure=_not_installed())
        return Answer(worker, failure=_of_creation(exc) or DiedError(_short(exc)))


def _of_creation(exc: BaseException) -> EspanDeployError | None:
    """What the actor's own constructor said."""
    cause = exc.__cause__ or getattr(exc, "cause", None)
    cause = getattr(cause, "cause", cause)
    return cause if isinstance(cause, EspanDeployError) else None


def _not_installed() -> BackendUnavailableError:
    from espan_deploy import __version__

    return BackendUnavailableError(
        "espan-deploy is not installed on the cluster's machines",
        hint=f"pip install 'espan-deploy[cpu,cluster]=={__version__}' on each of them",
    )


def _short(exc: BaseException) -> str:
    """The part of Ray's words that says what happened."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    if lines and "creation task" in lines[0]:
        return lines[-1][:300]
    telling = [line for line in lines if line.startswith(("The actor is dead", "The node"))]
    return (telling or lines or [type(exc).__name__])[0][:300]


def placed(nodes: list[Node], resources: Resources) -> tuple[dict[str, int], dict[str, Size]]:
    """How many actors on which node, and of which size. "" stands for nodes that are still to come.

    By GPUs where the cluster has any, or where they are asked for; else one actor to a node, on all its cores; more
    where more are asked for than there are nodes.
    """
    gpus = resources.gpus
    if gpus is None:
        gpus = 1.0 if any(node.gpus for node in nodes) else 0.0
    sizes: dict[str, Size] = {}
    room: dict[str, int] = {}
    crowd = 1
    if resources.actors is not None and not gpus and resources.cpus is None and nodes:
        crowd = -(-resources.actors // len(nodes))
    for node in nodes:
        fits = int(node.gpus / gpus) if gpus else crowd
        cpus = resources.cpus or max(1, node.cpus // max(1, fits))
        fits = min(fits, node.cpus // cpus) if gpus or resources.cpus is None else node.cpus // cpus
        if fits:
            room[node.id], sizes[node.id] = fits, Size(cpus, gpus)
    sizes[""] = Size(resources.cpus or max((size.cpus for size in sizes.values()), default=1), gpus)
    if resources.actors is None:
        return room or {"": 1}, sizes  # where nodes come once they are needed, one is
    places: Counter[str] = Counter()
    left = resources.actors
    while left and any(places[name] < most for name, most in room.items()):
        for name, most in room.items():  # one to each in turn
            if left and places[name] < most:
                places[name] += 1
                left -= 1
    return dict(places) | ({"": left} if left else {}), sizes
