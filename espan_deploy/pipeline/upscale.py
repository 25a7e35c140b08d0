"""The whole job: find the images, open the engine, run the stages, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from espan_deploy import backends
from espan_deploy.backends.base import Runner
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.backends.precision import EXACT, Verdict, choose_precision
from espan_deploy.errors import InputError
from espan_deploy.machine import memory_bytes, usable_cores
from espan_deploy.pipeline.decode import read_size
from espan_deploy.pipeline.encode import EncodeSettings, PngCompression
from espan_deploy.pipeline.infer import Fallback
from espan_deploy.pipeline.jobs import Job, Jobs, display, find_jobs
from espan_deploy.pipeline.manifest import Manifest, settings_sha256
from espan_deploy.pipeline.plan import (
    DEFAULT_BYTES_PER_PIXEL,
    MAX_BATCH,
    BatchPolicy,
    TilePolicy,
    fixed_batch,
    pixels_within,
)
from espan_deploy.pipeline.report import FileReport, Report
from espan_deploy.pipeline.run import Run, RunSettings, read_file

PIPELINE_VERSION = 2
"""Goes up when the same input, model and settings give other bytes than before."""

DEFAULT_MEMORY = 2 << 30
MEMORY_SHARE = 0.4
"""Of the machine's memory, where that is less than DEFAULT_MEMORY."""

GPU_BATCH_PIXELS = 1 << 20
"""A GPU is full with a megapixel per call."""


@dataclass(frozen=True)
class UpscaleSettings:
    """What the user may choose.

    tile: "auto", "none" or a side in pixels, halo included. memory: bytes for activations and images in flight, None
    for a share of the machine's. batch: images per engine call, None for as many as pay. threads: for everything,
    None for all. quality: None for the format's default.
    """

    engine: str = "auto"
    precision: str = "auto"
    tile: int | str = "auto"
    memory: int | None = None
    batch: int | None = None
    format: str = "same"
    quality: int | None = None
    png_compression: PngCompression = "fast"
    overwrite: bool = False
    threads: int | None = None


class Upscaling:
    """One run, prepared; ``run`` does it and may be stopped from another thread or a signal handler."""

    def __init__(self, source: Path, output: Path, model: Path, settings: UpscaleSettings) -> None:
        """Look at everything that can be wrong before work starts.

        Raises InputError, ExportError, BackendUnavailableError.
        """
        self.output, self.settings = output, settings
        self.started = time.perf_counter()
        self.model: ModelFile = read_model(model)
        self.found: Jobs = find_jobs(source, output, settings.format)
        if output.exists() and not output.is_dir():
            raise InputError(f"{display(output)} is not a folder", hint="name an output folder")
        self.choice = backends.choose(settings.engine, self.model)
        self._run: Run | None = None
        self._stopped = False

    @property
    def total(self) -> int:
        """Jobs to do."""
        return len(self.found.jobs)

    @property
    def finished(self) -> int:
        """Jobs with an outcome."""
        return self._run.finished if self._run is not None else 0

    def stop(self) -> None:
        """Finish what is in flight and start nothing more."""
        self._stopped = True
        if self._run is not None:
            self._run.stop()

    def plan(self) -> Report:
        """What would be done, touching nothing: for a dry run."""
        report = self._report(Verdict(self.settings.precision, "not opened"), None)
        policy = TilePolicy(self.settings.tile, pixels_within(self._memory(), DEFAULT_BYTES_PER_PIXEL, 1))
        for job in self.found.jobs:
            report.files.append(self._planned(job, policy))
        return report

    def _planned(self, job: Job, policy: TilePolicy) -> FileReport:
        file = FileReport(display(job.name), display(job.output), "planned")
        try:
            file.height, file.width, _ = read_size(read_file(job.source))
            file.tiles = sum(len(row) for row in policy.plan(file.height, file.width, self.model.description))
        except (InputError, OSError) as exc:
            file.status, file.error = "failed", getattr(exc, "message", None) or str(exc)
        return file

    def run(self, on_progress: Callable[[], None] = lambda: None) -> Report:
        """Do it. The report holds every file's outcome.

        Raises InputError where the output folder cannot be written, BackendUnavailableError or EngineBuildError
        where the engine cannot be opened. Failures of single files raise nothing.
        """
        backend, settings = self.choice.backend, self.settings
        threads = settings.threads or usable_cores()
        with Manifest(self.output) as manifest:
            verdict = choose_precision(backend, self.model, settings.precision, threads=threads)
            lanes = min(backend.max_lanes, self._lanes(threads))
            runners = backend.open_runners(self.model, precision=verdict.precision, threads=threads, lanes=lanes)
            fallback = Fallback(self._fp32 if verdict.precision != EXACT else None)
            try:
                report = self._report(verdict, runners[0])
                report.startup_seconds = time.perf_counter() - self.started
                self._run = Run(
                    self.found.jobs,
                    self.output,
                    manifest=manifest,
                    runners=runners,
                    fallback=fallback,
                    settings=self._run_settings(verdict, runners, threads),
                )
                if self._stopped:
                    self._run.stop()
                report.files += self._run.execute(on_progress)
            finally:
                for runner in runners:
                    runner.close()
                fallback.close()
        report.interrupted = self._stopped
        report.stopped_because = self._run.stopped_because
        report.seconds = time.perf_counter() - self.started
        return report

    def _lanes(self, threads: int) -> int:
        """One image after another on all threads, or as many at once as there are threads and things to do."""
        tiles = self.total if self.total > 1 else max(1, self.plan().files[-1].tiles)
        return max(1, min(threads, tiles))

    def _fp32(self) -> Runner:
        return self.choice.backend.open(self.model, precision=EXACT, threads=self.settings.threads)

    def _memory(self) -> int:
        return self.settings.memory or min(DEFAULT_MEMORY, int(MEMORY_SHARE * memory_bytes()))

    def _run_settings(self, verdict: Verdict, runners: list[Runner], threads: int) -> RunSettings:
        settings = self.settings
        memory = self._memory()
        details = runners[0].info.details
        per_pixel = int(details.get("bytes_per_pixel") or DEFAULT_BYTES_PER_PIXEL)
        sides = (details["max_height"], details["max_width"]) if "max_height" in details else None
        return RunSettings(
            settings_sha256=settings_sha256(
                pipeline=PIPELINE_VERSION,
                model=self.model.sha256,
                engine=self.choice.backend.name,
                precision=verdict.precision,
                quality=settings.quality,
                png_compression=settings.png_compression,
            ),
            encode=EncodeSettings(settings.quality, settings.png_compression),
            tiles=TilePolicy(settings.tile, pixels_within(memory // 2, per_pixel, len(runners)), sides),
            batch=self._batch(details),
            overwrite=settings.overwrite,
            in_flight_bytes=memory // 2,
            decoders=max(1, min(4, threads // 4)),
            encoders=max(1, min(8, threads // 2)),
        )

    def _batch(self, details: Mapping[str, Any]) -> BatchPolicy:
        """As asked for; else as many as pay on a CPU, or as the profile of a GPU's engine allows."""
        most = int(details.get("max_batch", MAX_BATCH))
        if self.settings.batch is not None:
            return fixed_batch(min(self.settings.batch, most))
        return BatchPolicy(most, GPU_BATCH_PIXELS) if "max_batch" in details else BatchPolicy()

    def _report(self, verdict: Verdict, runner: Runner | None) -> Report:
        description = self.model.description
        engine = {"backend": self.choice.backend.name, "chosen_because": self.choice.reason}
        if runner is not None:
            engine |= asdict(runner.info)
        engine |= {"precision": verdict.precision, "precision_because": verdict.reason}
        return Report(
            files=[FileReport(display(name), "", "failed", error) for name, error in self.found.broken],
            engine=engine,
            model={
                "path": display(self.model.path),
                "sha256": self.model.sha256,
                "network": description.network,
                "scale": description.scale,
                "halo": description.halo,
            },
            settings=asdict(self.settings),
            ignored=dict(self.found.ignored),
            skipped_folders=[display(name) for name in self.found.skipped_folders],
        )
