"""What a run did: every file, and how long each stage took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

SCHEMA_VERSION = 1

STAGES = ("decode", "infer", "encode", "end_to_end")
PERCENTILES = (50, 90, 99)

Status = Literal["done", "skipped", "failed", "planned", "not started"]


@dataclass
class FileReport:
    """One file.

    input, output: as printed. width, height: of the input as displayed, 0 where it could not be read.
    stage_ms: "decode", "infer" and "encode" are work; "end_to_end" is from the first byte read to the output's name,
        waiting included. An image that shared engine calls has its share of them, by pixels.
    """

    input: str
    output: str
    status: Status
    error: str = ""
    hint: str = ""
    width: int = 0
    height: int = 0
    tiles: int = 0
    redone_fp32: int = 0
    output_bytes: int = 0
    stage_ms: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """A whole run."""

    files: list[FileReport]
    engine: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    seconds: float = 0.0
    startup_seconds: float = 0.0
    interrupted: bool = False
    stopped_because: str = ""
    ignored: dict[str, int] = field(default_factory=dict)
    skipped_folders: list[str] = field(default_factory=list)

    def count(self, status: Status) -> int:
        """Files with this outcome."""
        return sum(file.status == status for file in self.files)

    @property
    def output_megapixels(self) -> float:
        """Of the files done."""
        scale = int(self.model.get("scale", 1))
        return sum(file.width * file.height for file in self.files if file.status == "done") * scale**2 / 1e6

    def latency_ms(self) -> dict[str, dict[str, float]]:
        """p50, p90 and p99 per stage over the files done."""
        result = {}
        for stage in STAGES:
            values = [file.stage_ms[stage] for file in self.files if file.status == "done" and stage in file.stage_ms]
            if values:
                result[stage] = percentiles(values)
        return result

    def to_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        counts = Counter(file.status for file in self.files)
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "engine": self.engine,
            "settings": self.settings,
            "interrupted": self.interrupted,
            "stopped_because": self.stopped_because,
            "counts": {
                status: counts.get(status, 0) for status in ("done", "skipped", "failed", "planned", "not started")
            },
            "seconds": self.seconds,
            "startup_seconds": self.startup_seconds,
            "images_per_second": self.count("done") / self.seconds if self.seconds else 0.0,
            "output_megapixels": self.output_megapixels,
            "redone_fp32": sum(file.redone_fp32 for file in self.files),
            "latency_ms": self.latency_ms(),
            "ignored": self.ignored,
            "skipped_folders": self.skipped_folders,
            "files": [vars(file) for file in self.files],
        }

    def summary(self) -> str:
        """The latency report as people read it."""
        done, failed = self.count("done"), self.count("failed")
        rate = done / self.seconds if self.seconds else 0.0
        counts = f"{done} done, {self.count('skipped')} already done, {failed} failed"
        if self.count("not started"):
            counts += f", {self.count('not started')} not started"
        lines = [
            f"{counts} in {self.seconds:.2f} s: {rate:.2f} images/s, {self.output_megapixels:.1f} megapixels out",
        ]
        redone = sum(file.redone_fp32 for file in self.files)
        if redone:
            lines.append(f"{redone} tile(s) were not finite in {self.engine.get('precision')} and redone in fp32")
        latency = self.latency_ms()
        if latency:
            lines.append(f"{'latency, ms':<12}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES))
            for stage, values in latency.items():
                row = "".join(f"{values[f'p{p}']:>10.1f}" for p in PERCENTILES)
                lines.append(f"{stage.replace('_', ' '):<12}{row}")
        return "\n".join(lines)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99, interpolated linearly."""
    points = np.percentile(np.asarray(values), PERCENTILES)
    return {f"p{p}": float(point) for p, point in zip(PERCENTILES, points, strict=True)}
