"""The engines and the stages at work for as long as the service runs, and what there is to count of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from espan_deploy.backends.choice import Workload
from espan_deploy.backends.model import ModelFile
from espan_deploy.errors import InputError
from espan_deploy.pipeline.choice import Fitting, fitting_model
from espan_deploy.pipeline.decode import read_origin
from espan_deploy.pipeline.engine import EngineSettings
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.opened import OpenModels, read_models
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

    model: for all pictures; None for that of the package's which fits each.
    Entering opens the first engine: raises BackendUnavailableError or EngineBuildError where it cannot. Leaving
    finishes what was accepted.
    """

    def __init__(
        self,
        model: Path | None,
        settings: ServiceSettings,
        limits: Limits,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = read_models(model)
        self.settings, self.limits, self.observer = settings, limits, observer
        self.desk = Desk(limits, clock)
        usual = Workload(USUAL_REQUESTS * USUAL_SIDE**2, USUAL_SIDE, USUAL_SIDE)
        self._opened = OpenModels(self.models, settings, at_once=None, workload=usual)
        self._thread: threading.Thread | None = None
        self._run: Run | None = None
        self._crash: BaseException | None = None

    def __enter__(self) -> Service:
        engine = self._opened.__enter__().engine
        run_settings = engine.run_settings()
        batch = replace(run_settings.batch, max_wait_seconds=self.settings.max_wait_ms / 1e3)
        self._run = Run(
            self.desk.jobs(),
            lanes=engine.lanes,
            settings=replace(run_settings, batch=batch),
            on_end=self._ended,
            on_call=self.observer.called,
            on_crash=self._broken,
        )
        self._thread = threading.Thread(target=self._work, args=(self._run,), name="stages", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.desk.close()
        if self._thread is not None:
            self._thread.join()
        self._opened.__exit__()

    @property
    def ready(self) -> bool:
        """Whether requests are taken and done."""
        return self._thread is not None and self._thread.is_alive() and not self.desk.closed

    def model_named(self, name: str) -> Fitting:
        """A model that a request asks for by name. Raises InputError where there is none, or no choice."""
        if not self._opened.chooses:
            raise InputError("this service runs one model for all pictures", hint="ask without model=")
        if name not in self.models:
            raise InputError(f"{name[:20]!r} is no model here", hint=f"there are {', '.join(self.models)}")
        return Fitting(name, "asked for")

    def ticket(
        self, data: bytes, *, format_name: str | None, quality: int | None = None, model: Fitting | None = None
    ) -> Ticket:
        """A ticket for a picture, as of the desk; the engine of its model is open then.

        model: asked for; None for the one that fits. Raises as the desk, and BackendUnavailableError or
        EngineBuildError.
        """
        ticket = self.desk.ticket(data, format_name=format_name, quality=quality)
        if self._opened.chooses:
            fitting = model or fitting_model(read_origin(data))
            self._opened.get(fitting.model)  # here: in the stages, others would wait for it
            ticket.model = partial(self._opened.taken, fitting)
        return ticket

    def submit(self, ticket: Ticket) -> None:
        """Queue a request. Raises BusyError, and what ended the stages if they ended."""
        if self._crash is not None:
            raise self._crash
        if not self.ready:
            raise BusyError("the service is not running", retry_seconds=10)
        self.desk.put(ticket)

    def describe(self) -> dict[str, Any]:
        """The models and their engines, as JSON has them; those not needed so far have none."""
        first, chooses = self._opened.first, self._opened.chooses
        return {
            "model": _facts(self.models[first]),
            "engine": self._engine_report(first),
            "models": {
                name: {**_facts(model), "engine": self._engine_report(name)}
                for name, model in self.models.items()
                if chooses
            },
            "limits": asdict(self.limits),
        }

    def _engine_report(self, name: str) -> dict[str, Any]:
        engine = self._opened.engines.get(name)
        return {} if engine is None else engine.report()

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


def _facts(model: ModelFile) -> dict[str, Any]:
    description = model.description
    return {
        "network": description.network,
        "title": description.title,
        "scale": description.scale,
        "sha256": model.sha256,
        "parameters": description.parameters,
    }
