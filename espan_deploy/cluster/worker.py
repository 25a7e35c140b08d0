"""What a worker does: it opens an engine once, then runs the stages without a pause over the files it is handed."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from espan_deploy import __version__
from espan_deploy.backends.choice import Workload
from espan_deploy.backends.model import ModelFile
from espan_deploy.errors import BackendUnavailableError
from espan_deploy.machine import usable_cores
from espan_deploy.pipeline.engine import Decided
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.names import NamedFile
from espan_deploy.pipeline.opened import FileModels, UpscaleSettings
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.run import Run
from espan_deploy.stores import Writer, open_destination, open_reader


@dataclass(frozen=True)
class Orders:
    """What every worker is told once.

    source, destination: bases of the stores. host: the driver's name as a writer. models: by name, with their bytes.
    at_once, workload: of the whole assignment.
    """

    source: str
    destination: str
    host: str
    models: Mapping[str, ModelFile]
    first: str
    settings: UpscaleSettings
    at_once: int | None
    workload: Workload | None
    version: str = __version__


@dataclass(frozen=True)
class Hello:
    """Who a worker is. node: told apart by the cluster; machine: by people. threads: that it may use."""

    node: str
    machine: str
    pid: int
    threads: int


@dataclass(frozen=True)
class Opened:
    """A worker's engine. settings_sha256: what its results depend on besides their inputs."""

    decided: Mapping[str, Decided]
    settings_sha256: str
    engine: dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """What came of the files since the last one. rows: outcomes by files' numbers. ended: nothing more will come."""

    rows: list[tuple[int, FileReport]] = field(default_factory=list)
    stopped_because: str = ""
    remark: str = ""
    ended: bool = False


class Feed:
    """Files on their way to the stages, which ask for the next when they can take it; endless until closed."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._files: deque[NamedFile] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._files)

    def put(self, files: Iterable[NamedFile]) -> None:
        """Hand out more."""
        with self._changed:
            self._files.extend(files)
            self._changed.notify_all()

    def close(self) -> None:
        """What was not asked for yet will not be done."""
        with self._changed:
            self._files.clear()
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[NamedFile]:
        while True:
            with self._changed:
                while not self._files and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                file = self._files.popleft()
                self._changed.notify_all()
            yield file


class Worker:
    """One process's share of an assignment. Its methods are called one after another, by the driver.

    name: as a writer. Raises BackendUnavailableError where another version is installed than the driver's: its results
    might be others.
    """

    def __init__(self, orders: Orders, name: str) -> None:
        if orders.version != __version__:
            raise BackendUnavailableError(
                f"espan-deploy {__version__} is installed on {socket.gethostname()}, and {orders.version} here",
                hint=f"install espan-deploy=={orders.version} on all machines",
            )
        self.orders, self.name = orders, name
        self.threads = orders.settings.threads or usable_cores()
        self._changed = threading.Condition()
        self._feed = Feed(self._changed)
        self._rows: list[tuple[int, FileReport]] = []
        self._outstanding = 0
        self._crash: BaseException | None = None
        self._run: Run | None = None
        self._thread: threading.Thread | None = None
        self._open = ExitStack()

    def hello(self) -> Hello:
        """Who it is."""
        return Hello("here", socket.gethostname(), os.getpid(), self.threads)

    def open(self, decided: Mapping[str, Decided] | None) -> Opened:
        """Open both ends and the engine, and start the stages.

        decided: what the models run in; None for the worker that decides. Raises InputError,
        BackendUnavailableError or EngineBuildError.
        """
        try:
            return self._begin(decided)
        except BaseException:
            self._open.close()
            raise

    def _begin(self, decided: Mapping[str, Decided] | None) -> Opened:
        orders = self.orders
        settings = replace(orders.settings, threads=self.threads)
        reader = open_reader(orders.source)
        destination = self._open.enter_context(open_destination(orders.destination, Writer(self.name, orders.host)))
        models = FileModels(
            orders.models,
            settings,
            first=orders.first,
            at_once=orders.at_once,
            workload=orders.workload,
            decided=decided,
            choice=None if decided is None else _choice(orders, decided),
        )
        opened = self._open.enter_context(models)
        answer = Opened(decided or opened.decide(), opened.settings_sha256, opened.engine.report())
        jobs = opened.jobs(reader, iter(self._feed), destination)
        self._run = opened.run(jobs, reader, destination, on_end=self._ended, on_crash=self._crashed)
        self._thread = threading.Thread(target=self._work, args=(self._run,), name="stages", daemon=True)
        self._thread.start()
        return answer

    def _work(self, run: Run) -> None:
        try:
            run.execute()
        except BaseException as exc:
            self._crashed(exc)
        with self._changed:
            self._changed.notify_all()

    def _ended(self, job: Job, row: FileReport, _: BaseException | None) -> None:
        with self._changed:
            self._rows.append((job.number, row))
            self._outstanding -= 1
            self._changed.notify_all()

    def _crashed(self, exc: BaseException) -> None:
        with self._changed:
            self._crash = self._crash or exc
            self._changed.notify_all()

    def turn(self, files: tuple[NamedFile, ...], seconds: float, stop: bool = False) -> Turn:
        """Take more files, and return what is done, as soon as all files have been begun, or after so many seconds.

        Where all have been begun before, as soon as all are done. stop: begin nothing more.
        Raises what broke the stages.
        """
        assert self._run is not None
        assert self._thread is not None
        end = time.monotonic() + seconds
        if stop:
            self._feed.close()
            self._run.stop()
        with self._changed:
            self._outstanding += len(files)
        self._feed.put(files)
        with self._changed:
            while self._thread.is_alive() and self._crash is None and not self._is_ready(bool(files)):
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._crash is not None:
                raise RuntimeError(f"the stages broke: {self._crash!r}") from self._crash
            rows, self._rows = self._rows, []
        return Turn(rows, self._run.stopped_because, self._run.remark, not self._thread.is_alive())

    def _is_ready(self, more: bool) -> bool:
        """For the next turn: more is wanted, or nothing is left."""
        return not self._outstanding or (more and not len(self._feed))

    def close(self) -> None:
        """Finish what is in flight, and close everything."""
        self._feed.close()
        if self._thread is not None:
            self._thread.join()
        self._open.close()


def _choice(orders: Orders, decided: Mapping[str, Decided]) -> Any:
    """Of the backend that is settled: this machine's own preference does not matter."""
    from espan_deploy import backends

    return backends.choose(decided[orders.first].engine, orders.models[orders.first])
