"""The whole job in this process: from a source to a destination, with an engine between them, and a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from espan_deploy import backends
from espan_deploy.pipeline.assignment import Assignment, row_of
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.opened import FileModels, UpscaleSettings
from espan_deploy.pipeline.report import FileReport, Report
from espan_deploy.pipeline.run import Run


class Upscaling(Assignment):
    """An assignment for this process; ``run`` does it and may be stopped from another thread or a signal handler.

    lanes: how many pictures are inferred at once, known while it runs.
    """

    def __init__(self, source: str | Path, output: str | Path, model: Path | None, settings: UpscaleSettings) -> None:
        """As an assignment; raises BackendUnavailableError too."""
        super().__init__(source, output, model, settings)
        self.choice = backends.choose(settings.engine, self.model)
        self._run: Run | None = None
        self._stopped = False
        self.lanes = 0

    def plan(self) -> Report:
        """With the backend that it would run in."""
        report = super().plan()
        report.engine["backend"] = self.choice.backend.name
        return report

    @property
    def finished(self) -> int:
        """Jobs with an outcome."""
        return self._run.finished if self._run is not None else 0

    def stop(self) -> None:
        """Finish what is in flight and start nothing more."""
        self._stopped = True
        if self._run is not None:
            self._run.stop()

    def run(self, on_progress: Callable[[], None] = lambda: None) -> Report:
        """Do it. The report holds every file's outcome.

        Raises InputError where the destination cannot be written, BackendUnavailableError or EngineBuildError
        where the engine cannot be opened. Failures of single files raise nothing.
        """
        at_once, workload = self._at_once(), self._workload()
        with (
            self.destination,
            FileModels(
                self.models, self.settings, first=self.first, choice=self.choice, at_once=at_once, workload=workload
            ) as opened,
        ):
            report = self.report = Report(**self._described(opened.engine.report()))
            report.startup_seconds = time.perf_counter() - self.started
            self.lanes = len(opened.engine.lanes)
            jobs = self._jobs(opened)
            self._run = opened.run(
                jobs, self.source, self.destination, on_end=partial(self._take, report), on_crash=self._crashed
            )
            if self._stopped:
                self._run.stop()
            self._run.execute(on_progress)
            self._finish(report, jobs)
        report.interrupted = self._stopped
        report.stopped_because, report.remark = self._run.stopped_because, self._run.remark
        report.seconds = time.perf_counter() - self.started
        return self._with_left_out(report)

    def _jobs(self, opened: FileModels) -> Iterator[Job]:
        return opened.jobs(self.source, self.files(), self.destination)

    def _take(self, report: Report, job: Job, file: FileReport, failure: BaseException | None) -> None:
        """A job's outcome. From any thread."""
        del failure
        report.add(job.number, file)

    def _crashed(self, exc: BaseException) -> None:
        """The stages have ended by a broken invariant."""

    def _finish(self, report: Report, jobs: Iterator[Job]) -> None:
        """The stages have ended, and the destination is still open. jobs: what a stopped run has left."""
        if self.total is not None:
            for job in jobs:
                report.add(job.number, row_of(job))

    def _at_once(self) -> int | None:
        """Images, or the tiles of the only one."""
        if self.total != 1:
            return self.total
        return max([1, *(self._planned(job).tiles for job in self.planned_jobs())])
