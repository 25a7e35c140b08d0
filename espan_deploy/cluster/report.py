"""The report of a run on many machines: that of any run, and who did how much of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from espan_deploy.pipeline.report import FileReport, Report

STRAGGLER = 0.5
"""Of the median pace, below which a worker is named."""

LEAST_FILES = 4
"""Of a worker, for its pace to say something."""


@dataclass
class WorkerReport:
    """One worker. seconds: from its first file to its last outcome. died: what is known of its end, where it died."""

    name: str = ""
    machine: str = ""
    node: str = ""
    files: int = 0
    pixels: int = 0
    seconds: float = 0.0
    last_file: str = ""
    died: str = ""

    def add(self, row: FileReport, seconds: float) -> None:
        """Take an outcome, so long after its first file."""
        self.files += 1
        self.pixels += row.pixels if row.status == "done" else 0
        self.seconds, self.last_file = seconds, row.input

    @property
    def pace(self) -> float:
        """Pixels of the input a second."""
        return self.pixels / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return f"{self.name} on {self.machine}"


@dataclass
class ClusterReport(Report):
    """Of a run on many machines. tail_seconds: at its end, when some had nothing left to do and others had.

    refused: why workers could not take part.
    """

    workers: list[WorkerReport] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    deaths: int = 0
    tail_seconds: float = 0.0

    @property
    def stragglers(self) -> list[WorkerReport]:
        """Workers slower than half the median."""
        return stragglers(self.workers)

    def to_dict(self) -> dict[str, Any]:
        """With who did how much."""
        return super().to_dict() | {
            "cluster": {
                "workers": [vars(worker) | {"pixels_per_second": worker.pace} for worker in self.workers],
                "stragglers": [worker.name for worker in self.stragglers],
                "deaths": self.deaths,
                "refused": self.refused,
                "tail_seconds": self.tail_seconds,
            }
        }

    def summary(self) -> str:
        """With what there is to know about the cluster."""
        nodes = len({worker.node for worker in self.workers if worker.files})
        at_work = sum(1 for worker in self.workers if worker.files)
        line = f"cluster: {at_work} worker(s) on {nodes} node(s)"
        if self.deaths:
            line += f", {self.deaths} died and their files were done by others"
        lines = [line]
        if self.stragglers:
            usual = _usual(self.workers)
            slow = ", ".join(f"{worker} ({worker.pace / usual:.0%} of the median)" for worker in self.stragglers)
            lines.append(f"slow: {slow}")
        if self.tail_seconds > max(1.0, 0.05 * self.seconds) and self.workers:
            last = max(self.workers, key=lambda worker: worker.seconds)
            lines.append(f"for the last {self.tail_seconds:.1f} s others waited for {last}: {last.last_file}")
        lines += [f"took no part: {reason}, {count} time(s)" for reason, count in Counter(self.refused).items()]
        return "\n".join([super().summary(), *lines])


def stragglers(workers: Sequence[WorkerReport]) -> list[WorkerReport]:
    """Those slower than half the median of all that did enough to tell; none where there are fewer than three."""
    usual = _usual(workers)
    return [w for w in workers if w.files >= LEAST_FILES and w.pace < STRAGGLER * usual]


def _usual(workers: Sequence[WorkerReport]) -> float:
    paces = [worker.pace for worker in workers if worker.files >= LEAST_FILES]
    return median(paces) if len(paces) >= 3 else 0.0
