"""What Prometheus is told: requests, stages, the queue, batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from espan_deploy.pipeline.report import FileReport
from espan_deploy.serve.desk import Desk

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Outcome:
    """status: of the answer, 500 until there is one."""

    status: int = 500


class Metrics:
    """One service's, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("espan_requests", "Answers by status.", ["status"], registry=self.registry)
        self.latency = Histogram(
            "espan_request_seconds",
            "From a request's first byte to its answer.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.stages = Histogram(
            "espan_stage_seconds",
            "What a stage took for one picture.",
            ["stage"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.batches = Histogram(
            "espan_batch_images", "Images and tiles in one engine call.", registry=self.registry, buckets=BATCHES
        )
        self.models = Counter(
            "espan_pictures", "Pictures by the model taken, where there are several.", ["model"], registry=self.registry
        )
        self.at_work = Gauge("espan_requests_in_progress", "Requests without an answer.", registry=self.registry)
        self.queue = Gauge("espan_queue_length", "Requests that wait for the stages.", registry=self.registry)

    def watch(self, desk: Desk) -> None:
        """Tell its queue."""
        self.queue.set_function(lambda: desk.waiting)

    def called(self, images: int) -> None:
        """The engine was called with so many images."""
        self.batches.observe(images)

    def ended(self, report: FileReport, failure: BaseException | None) -> None:
        """A request left the stages."""
        if failure is None:
            for stage in ("decode", "infer", "encode"):
                self.stages.labels(stage).observe(report.stage_ms[stage] / 1e3)
            if report.model:
                self.models.labels(report.model).inc()

    @contextmanager
    def request(self) -> Iterator[Outcome]:
        """Count and time what happens inside."""
        outcome, start = Outcome(), time.perf_counter()
        with self.at_work.track_inprogress():
            try:
                yield outcome
            finally:
                self.requests.labels(str(outcome.status)).inc()
                self.latency.observe(time.perf_counter() - start)

    def exposition(self) -> tuple[bytes, str]:
        """The text, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
