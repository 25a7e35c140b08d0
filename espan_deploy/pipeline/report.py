"""What a run did: every file, and how long each stage took."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, Literal

SCHEMA_VERSION = 1

STAGES = ("decode", "infer", "encode", "publish", "end_to_end")
PERCENTILES = (50, 90, 99)

MAX_ROWS = 100_000
"""Files that a report lists one by one; of those that failed, as many more."""

MAX_SAMPLE = 1 << 16
"""Durations of a stage that are kept for its percentiles."""

Status = Literal["done", "damaged", "skipped", "failed", "planned", "not started"]
"""damaged: done, of an input that could not be read whole."""


@dataclass
class FileReport:
    """One file.

    input, output: as printed. width, height: of the input as displayed, 0 where it could not be read.
    model, model_because: which was taken for it, and why, where a run has several.
    stage_ms: "decode", "infer" and "encode" are work, "publish" is waiting for the disk or the bucket; "end_to_end" is
        from the first byte read to the output's name, waiting included. An image that shared engine calls has its share
        of them, by pixels.
    """

    input: str
    output: str
    status: Status
    error: str = ""
    hint: str = ""
    width: int = 0
    height: int = 0
    model: str = ""
    model_because: str = ""
    tiles: int = 0
    redone_fp32: int = 0
    output_bytes: int = 0
    stage_ms: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def pixels(self) -> int:
        """Of the input."""
        return self.width * self.height

    def plan(self) -> str:
        """What is planned, as people read it."""
        taken = f", {self.model} ({self.model_because})" if self.model else ""
        return f"{self.input} -> {self.output}  {self.width}x{self.height}, {self.tiles} tile(s){taken}"


class Sample:
    """Every value of a series while they are few; then every second, every fourth and so on, over the whole of it."""

    def __init__(self) -> None:
        self.values = array("d")
        self._seen, self._step = 0, 1

    def add(self, value: float) -> None:
        """Take the next value."""
        if self._seen % self._step == 0:
            self.values.append(value)
            if len(self.values) > MAX_SAMPLE:
                self.values = self.values[::2]
                self._step *= 2
        self._seen += 1


@dataclass
class Report:
    """A whole run, which may be of millions of files: its memory is bounded.

    model: the one named, or that opened first; models: all of a run that takes one for each file; taken: by name, how
    many files.

    ``add`` may be called from any thread; counts and sums are of all files.
    """

    engine: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    seconds: float = 0.0
    startup_seconds: float = 0.0
    interrupted: bool = False
    stopped_because: str = ""
    remark: str = ""
    ignored: dict[str, int] = field(default_factory=dict)
    skipped_folders: list[str] = field(default_factory=list)
    counts: Counter[Status] = field(default_factory=Counter)
    redone_fp32: int = 0
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rows: list[tuple[int, FileReport]] = []
        self._pixels = 0
        self._samples = {stage: Sample() for stage in STAGES}
        self._lock = threading.Lock()

    def add(self, number: int, file: FileReport) -> None:
        """Take a file's outcome; number: its place among the others."""
        with self._lock:
            self.counts[file.status] += 1
            self.redone_fp32 += file.redone_fp32
            if file.model:
                self.taken[file.model] += 1
            if file.status in ("done", "damaged"):
                self._pixels += file.pixels
                for stage, milliseconds in file.stage_ms.items():
                    self._samples[stage].add(milliseconds)
            rows = self.counts["failed"] if file.status == "failed" else self.counts.total() - self.counts["failed"]
            if rows <= MAX_ROWS:
                self._rows.append((number, file))

    @property
    def files(self) -> list[FileReport]:
        """In order: the first MAX_ROWS files, and of those that failed as many."""
        with self._lock:
            return [file for _, file in sorted(self._rows, key=lambda row: row[0])]

    def count(self, status: Status) -> int:
        """Files with this outcome."""
        return self.counts[status]

    @property
    def output_megapixels(self) -> float:
        """Of the files done."""
        return self._pixels * int(self.model.get("scale", 1)) ** 2 / 1e6

    def latency_ms(self) -> dict[str, dict[str, float]]:
        """p50, p90 and p99 per stage over the files done."""
        return {stage: percentiles(sample.values) for stage, sample in self._samples.items() if sample.values}

    def to_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        files = self.files
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "models": self.models,
            "taken": dict(self.taken),
            "engine": self.engine,
            "settings": self.settings,
            "interrupted": self.interrupted,
            "stopped_because": self.stopped_because,
            "remark": self.remark,
            "counts": {
                status: self.count(status)
                for status in ("done", "damaged", "skipped", "failed", "planned", "not started")
            },
            "seconds": self.seconds,
            "startup_seconds": self.startup_seconds,
            "images_per_second": self.count("done") / self.seconds if self.seconds else 0.0,
            "output_megapixels": self.output_megapixels,
            "redone_fp32": self.redone_fp32,
            "latency_ms": self.latency_ms(),
            "ignored": self.ignored,
            "skipped_folders": self.skipped_folders,
            "files": [vars(file) for file in files],
            "files_left_out": self.counts.total() - len(files),
        }

    def summary(self) -> str:
        """The latency report as people read it."""
        done, failed = self.count("done"), self.count("failed")
        rate = done / self.seconds if self.seconds else 0.0
        counts = f"{done} done, {self.count('skipped')} already done, {failed} failed"
        if self.count("damaged"):
            counts += f", {self.count('damaged')} damaged"
        if self.count("not started"):
            counts += f", {self.count('not started')} not started"
        lines = [
            f"{counts} in {self.seconds:.2f} s: {rate:.2f} images/s, {self.output_megapixels:.1f} megapixels out",
        ]
        if self.taken:
            lines.append("model: " + ", ".join(f"{name} for {count}" for name, count in self.taken.most_common()))
        if self.redone_fp32:
            lines.append(
                f"{self.redone_fp32} tile(s) were not finite in {self.engine.get('precision')} and redone in fp32"
            )
        latency = self.latency_ms()
        if latency:
            lines.append(f"{'latency, ms':<12}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES))
            for stage, values in latency.items():
                row = "".join(f"{values[f'p{p}']:>10.1f}" for p in PERCENTILES)
                lines.append(f"{stage.replace('_', ' '):<12}{row}")
        return "\n".join(lines)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99, interpolated linearly. Of at least one value."""
    cuts = quantiles([values[0], *values] if len(values) == 1 else values, n=100, method="inclusive")
    return {f"p{p}": cuts[p - 1] for p in PERCENTILES}
