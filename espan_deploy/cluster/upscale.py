"""An assignment for a cluster: the driver lists, hands out names and hears of outcomes; workers do the rest."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from espan_deploy.cluster.actors import RayActors, Resources, connected
from espan_deploy.cluster.foreman import Actors, Foreman, row_of
from espan_deploy.cluster.ledger import Ledger
from espan_deploy.cluster.report import ClusterReport
from espan_deploy.cluster.worker import Opened, Orders
from espan_deploy.pipeline.assignment import Assignment
from espan_deploy.pipeline.opened import UpscaleSettings
from espan_deploy.pipeline.report import FileReport
from espan_deploy.stores import Writer

Staffed = Callable[[Orders], AbstractContextManager[Actors]]
"""Gives the actors that follow such orders."""


class ClusterUpscaling(Assignment):
    """Pictures by many machines. ``run`` does it and may be stopped from another thread or a signal handler."""

    def __init__(
        self, source: str | Path, output: str | Path, model: Path | None, settings: UpscaleSettings, staffed: Staffed
    ) -> None:
        """As an assignment."""
        self._name = f"cluster-{secrets.token_hex(4)}"
        super().__init__(source, output, model, settings)
        self._staffed = staffed
        self._foreman: Foreman | None = None
        self._stopped = False
        self.finished = 0

    def _writer(self) -> Writer:
        return Writer(self._name)

    def progress(self) -> str:
        """With how many are at work."""
        if self._foreman is None:
            return super().progress()
        workers = self._foreman.at_work
        staff = f"{workers} worker(s)" if workers else "waiting for the cluster"
        return ", ".join(filter(None, (super().progress(), staff)))

    @property
    def notice(self) -> str:
        """That the cluster has no room."""
        waiting = self._foreman.waiting_for_room if self._foreman is not None else 0
        return f"the cluster has had no room so far for any of {waiting} worker(s); waiting for it" if waiting else ""

    def stop(self) -> None:
        """Finish what workers have begun and start nothing more."""
        self._stopped = True
        if self._foreman is not None:
            self._foreman.stop()

    def run(self, on_progress: Callable[[], None] = lambda: None) -> ClusterReport:
        """Do it. The report holds every file's outcome.

        Raises InputError where the destination cannot be written, BackendUnavailableError or EngineBuildError where
        no worker can begin.
        """
        orders = Orders(
            self.source.base,
            self.destination.base,
            self._name,
            self.models,
            self.first,
            self.settings,
            self.total,
            self._workload(),
        )
        files = self.files()
        with self.destination, self._staffed(orders) as actors:
            report = self.report = ClusterReport(**self._described({"backend": self.settings.engine}))
            foreman = self._foreman = Foreman(
                Ledger(files, self.source.size),
                actors,
                self._name,
                on_row=partial(self._take, report),
                on_open=partial(self._opened, report),
            )
            if self._stopped:
                foreman.stop()
            foreman.execute(on_progress)
            report.seconds = time.perf_counter() - self.started  # before Ray shuts down
            for file in (*foreman.ledger.abandoned(), *(files if self.total is not None else ())):
                report.add(file.number, row_of(file))
        report.interrupted = self._stopped
        report.stopped_because, report.remark = foreman.stopped_because, foreman.remark
        report.workers, report.deaths, report.tail_seconds = foreman.reports, foreman.deaths, foreman.tail_seconds
        report.refused = [failure.message for failure in foreman.refused.values()]
        self._with_left_out(report)
        return report

    def _opened(self, report: ClusterReport, opened: Opened) -> None:
        report.engine = opened.engine
        report.startup_seconds = time.perf_counter() - self.started

    def _take(self, report: ClusterReport, number: int, row: FileReport) -> None:
        report.add(number, row)
        self.finished += row.status != "not started"


def staffed_by_ray(address: str, resources: Resources) -> Staffed:
    """Actors of a Ray cluster, reached when the work begins."""

    @contextmanager
    def staffed(orders: Orders) -> Iterator[Actors]:
        with connected(address):
            yield RayActors(orders, resources)

    return staffed
