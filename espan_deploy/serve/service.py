"""The engine and the stages at work for as long as the service runs, and what there is to count of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from espan_deploy import backends
from espan_deploy.backends.base import Images, Runner
from espan_deploy.backends.choice import Workload
from espan_deploy.backends.model import read_model
from espan_deploy.pipeline.engine import EngineSettings, OpenEngine
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.run import Run
from espan_deploy.serve.desk import BusyError, Desk, Limits, Ticket

USUAL_SIDE, USUAL_REQUESTS = 256, 1000
"""What is expected of requests before there were any: enough of them that choosing the engine by measuring pays."""


@dataclass(frozen=True)
class ServiceSettings(EngineSettings):
    """max_wait_ms: for how long an image may wait for others of its size to share an engine call."""

    max_wait_ms: float = 2.0


class Observer(Protocol):
    """Is told what happens. From any thread."""

    def called(self, images: int) -> None:
        """The engine was called with so many images."""
        ...

    def ended(self, report: FileReport, failure: BaseException | None) -> None:
        """A request is done."""
        ...


class Service:
    """An endless run between a desk and whoever waits. Use as a context manager.

    Entering opens the engine: raises BackendUnavailableError or EngineBuildError where it cannot. Leaving finishes what
    was accepted.
    """

    def __init__(
        self,
        model: Path,
        settings: ServiceSettings,
        limits: Limits,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = read_model(model)
        self.settings, self.limits, self.observer = settings, limits, observer
        self.desk = Desk(limits, clock)
        self._choice = backends.choose(settings.engine, self.model)
        self._engine: OpenEngine | None = None
        self._thread: threading.Thread | None = None
        self._run: Run | None = None
        self._crash: BaseException | None = None

    def __enter__(self) -> Service:
        usual = Workload(USUAL_REQUESTS * USUAL_SIDE**2, USUAL_SIDE, USUAL_SIDE)
        engine = self._engine = OpenEngine(self.model, self._choice, self.settings, at_once=None, workload=usual)
        run_settings = engine.run_settings()
        batch = replace(run_settings.batch, max_wait_seconds=self.settings.max_wait_ms / 1e3)
        self._run = Run(
            self.desk.jobs(),
            runners=[Observed(runner, self.observer) for runner in engine.runners],
            fallback=engine.fallback,
            settings=replace(run_settings, batch=batch),
            on_end=self._ended,
            on_crash=self._broken,
        )
        self._thread = threading.Thread(target=self._work, args=(self._run,), name="stages", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.desk.close()
        if self._thread is not None:
            self._thread.join()
        if self._engine is not None:
            self._engine.close()

    @property
    def ready(self) -> bool:
        """Whether requests are taken and done."""
        return self._thread is not None and self._thread.is_alive() and not self.desk.closed

    def submit(self, ticket: Ticket) -> None:
        """Queue a request. Raises BusyError, and what ended the stages if they ended."""
        if self._crash is not None:
            raise self._crash
        if not self.ready:
            raise BusyError("the service is not running", retry_seconds=10)
        self.desk.put(ticket)

    def describe(self) -> dict[str, Any]:
        """The model and the engine, as JSON has them."""
        description = self.model.description
        return {
            "model": {
                "network": description.network,
                "title": description.title,
                "scale": description.scale,
                "sha256": self.model.sha256,
                "parameters": description.parameters,
            },
            "engine": {} if self._engine is None else self._engine.report(),
            "limits": asdict(self.limits),
        }

    def _work(self, run: Run) -> None:
        try:
            run.execute()
        except BaseException as exc:
            self._broken(exc)

    def _broken(self, exc: BaseException) -> None:
        """The stages have ended: everybody who waits gets the traceback."""
        self._crash = self._crash or exc
        self.desk.abandon(exc)

    def _ended(self, job: Job, report: FileReport, failure: BaseException | None) -> None:
        self.observer.ended(report, failure)
        self.desk.ended(job, report, failure)


class Observed(Runner):
    """A runner whose calls are told."""

    def __init__(self, runner: Runner, observer: Observer) -> None:
        self._runner, self._observer = runner, observer
        self.description, self.info = runner.description, runner.info

    def infer(self, images: Images) -> Images:
        """As the runner does."""
        self._observer.called(len(images))
        return self._runner.infer(images)

    def infer_into(self, images: Images, kept: tuple[slice, slice], out: Images) -> None:
        """As the runner does."""
        self._observer.called(len(images))
        self._runner.infer_into(images, kept, out)

    def _infer(self, images: Images) -> Images:
        return self._runner.infer(images)
