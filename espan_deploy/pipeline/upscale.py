"""The whole job: from a source to a destination, with an engine between them, and a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import Any, ClassVar

from espan_deploy import backends
from espan_deploy.backends.choice import Workload
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.errors import InputError
from espan_deploy.files import display
from espan_deploy.models import MODELS
from espan_deploy.pipeline.choice import fitting_model, likely_model
from espan_deploy.pipeline.decode import EXTENSIONS
from espan_deploy.pipeline.encode import EncodeSettings, PngCompression
from espan_deploy.pipeline.encoded import Choose, FileSettings, digest, file_jobs
from espan_deploy.pipeline.engine import Engines, EngineSettings, OpenEngine
from espan_deploy.pipeline.jobs import Job, Taken
from espan_deploy.pipeline.origin import Origin
from espan_deploy.pipeline.report import FileReport, Report
from espan_deploy.pipeline.run import Run, RunSettings
from espan_deploy.stores import Destination, Endings, Entry, Source, open_stores

PIPELINE_VERSION = 3
"""Goes up when the same input, model and settings give other bytes than before."""


SAMPLED = 8
"""Images whose sizes tell how much there is to do."""


@dataclass(frozen=True)
class UpscaleSettings(EngineSettings):
    """What the user may choose. quality: None for the format's default."""

    format: str = "same"
    quality: int | None = None
    png_compression: PngCompression = "fast"
    overwrite: bool = False

    @property
    def encode(self) -> EncodeSettings:
        """What encoders get of it."""
        return EncodeSettings(self.quality, self.png_compression)


class Upscaling:
    """One run, prepared; ``run`` does it and may be stopped from another thread or a signal handler.

    endings: of the files that it takes. lanes: how many pictures are inferred at once, known while it runs.
    """

    endings: ClassVar[Endings] = EXTENSIONS

    def __init__(self, source: str | Path, output: str | Path, model: Path | None, settings: UpscaleSettings) -> None:
        """Look at everything that can be wrong before work starts.

        model: None for that of the package's which fits each file.
        Raises InputError, ExportError, BackendUnavailableError.
        """
        self.settings = settings
        self.started = time.perf_counter()
        self.chooses = model is None
        files = {name: packaged.path for name, packaged in MODELS.items()} if model is None else {str(model): model}
        self.models: dict[str, ModelFile] = {name: read_model(path) for name, path in files.items()}
        self.source: Source
        self.destination: Destination
        self.source, self.destination = self._open_stores(source, output)
        _require_files(self.source, self.endings)
        self.first = str(model) if model is not None else likely_model(next(_names(self.source), ""))
        self.model = self.models[self.first]
        self.choice = backends.choose(settings.engine, self.model)
        self._choose: Choose | None = _planned_model if self.chooses else None
        self.report: Report | None = None
        self._run: Run | None = None
        self._stopped = False
        self.lanes = 0

    def _open_stores(self, source: str | Path, output: str | Path) -> tuple[Source, Destination]:
        return open_stores(source, output, self.endings)

    @property
    def total(self) -> int | None:
        """Jobs to do; None where only the end will tell."""
        return self.source.total

    @property
    def expected(self) -> int | None:
        """What ``finished`` comes to; None where only the end will tell."""
        return self.total

    @property
    def finished(self) -> int:
        """Jobs with an outcome."""
        return self._run.finished if self._run is not None else 0

    def progress(self) -> str:
        """How far it is, besides the count."""
        megapixels = self.report.output_megapixels if self.report is not None else 0
        return f"{megapixels:,.0f} megapixels" if megapixels else ""

    def stop(self) -> None:
        """Finish what is in flight and start nothing more."""
        self._stopped = True
        if self._run is not None:
            self._run.stop()

    def plan(self) -> Report:
        """What would be done, touching nothing: for a dry run."""
        report = self._report({"backend": self.choice.backend.name, "precision": self.settings.precision})
        for job in self._image_jobs(""):
            report.add(job.number, self._planned(job))
        return self._with_left_out(report)

    def _planned(self, job: Job) -> FileReport:
        file = _row(job)
        file.status = "planned"
        try:
            if job.model is not None:
                taken = job.model()
                file.model, file.model_because = taken.model, taken.because
            file.height, file.width = job.input.size()
            file.tiles = self.settings.tiles(file.height, file.width, self.model.description)
        except (InputError, OSError) as exc:
            file.status, file.error = "failed", getattr(exc, "message", None) or str(exc)
        return file

    def run(self, on_progress: Callable[[], None] = lambda: None) -> Report:
        """Do it. The report holds every file's outcome.

        Raises InputError where the destination cannot be written, BackendUnavailableError or EngineBuildError
        where the engine cannot be opened. Failures of single files raise nothing.
        """
        at_once, workload = self._at_once(), self._workload()
        with (
            self.destination,
            Engines(self.models, self.choice, self.settings, at_once=at_once, workload=workload) as engines,
        ):
            engine, _ = engines.get(self.first)
            if self.chooses:
                self._choose = partial(self._opened, engines)
            report = self.report = self._report(engine.report())
            report.startup_seconds = time.perf_counter() - self.started
            self.lanes = len(engine.runners)
            jobs = self._jobs(self._settings_sha256(engine))
            self._run = Run(
                jobs,
                runners=engine.runners,
                fallback=engine.fallback,
                settings=self._run_settings(engine),
                on_end=partial(self._take, report),
                on_crash=self._crashed,
            )
            if self._stopped:
                self._run.stop()
            self._run.execute(on_progress)
            self._finish(report, jobs)
        report.interrupted = self._stopped
        report.stopped_because, report.remark = self._run.stopped_because, self._run.remark
        report.seconds = time.perf_counter() - self.started
        return self._with_left_out(report)

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
                report.add(job.number, _row(job))

    def _run_settings(self, engine: OpenEngine) -> RunSettings:
        """With as many threads as transfers at once."""
        settings, looking_up = engine.run_settings(), self.destination.transfers
        return replace(
            settings,
            decoders=max(settings.decoders, self.source.transfers, looking_up),
            encoders=max(settings.encoders, self.destination.transfers),
        )

    def _at_once(self) -> int | None:
        """Images, or the tiles of the only one."""
        if self.total != 1:
            return self.total
        return max([1, *(self._planned(job).tiles for job in self._image_jobs(""))])

    def _workload(self) -> Workload | None:
        """What there is to do, from a sample of the sizes; None where that cannot be told."""
        total = self.total
        if total is None:
            return None
        step = max(1, total // SAMPLED)
        sizes = []
        for job in islice(self._image_jobs(""), 0, step * SAMPLED, step):
            with suppress(InputError, OSError):
                sizes.append(job.input.size())
        if not sizes:
            return None
        pixels = [height * width for height, width in sizes]
        height, width = sizes[pixels.index(median_low(pixels))]
        return Workload(sum(pixels) * total // len(pixels), height, width)

    def _jobs(self, settings_sha256: str) -> Iterator[Job]:
        return self._image_jobs(settings_sha256)

    def _image_jobs(self, settings_sha256: str) -> Iterator[Job]:
        settings = self.settings
        files = FileSettings(settings_sha256, settings.encode, settings.format, settings.overwrite)
        return file_jobs(self.source, self._image_entries(), self.destination, files, self._choose)

    def _opened(self, engines: Engines, origin: Origin) -> tuple[Taken, str]:
        """The model that fits, its engine open."""
        fitting = fitting_model(origin)
        engine, lanes = engines.get(fitting.model)
        return Taken(fitting.model, fitting.because, lanes), self._settings_sha256(engine)

    def _image_entries(self) -> Iterator[Entry]:
        return self.source.entries()

    def _settings_sha256(self, engine: OpenEngine) -> str:
        return digest(
            pipeline=PIPELINE_VERSION,
            model=engine.model.sha256,
            engine=engine.decision.backend.name,
            precision=engine.decision.precision,
            quality=self.settings.quality,
            png_compression=self.settings.png_compression,
        )

    def _report(self, engine: dict[str, Any]) -> Report:
        models = {name: _model_report(model) for name, model in self.models.items()}
        return Report(
            engine=engine,
            model=models[self.first],
            models=models if self.chooses else {},
            settings=asdict(self.settings),
        )

    def _with_left_out(self, report: Report) -> Report:
        left_out = self.source.left_out
        for name, error in left_out.broken:
            report.add(0, FileReport(display(name), "", "failed", error))
        report.ignored = dict(left_out.ignored)
        report.skipped_folders = [display(name) for name in left_out.skipped_folders]
        return report


def _names(source: Source) -> Iterator[str]:
    return (entry.name for entry in source.entries())


def _model_report(model: ModelFile) -> dict[str, Any]:
    description = model.description
    return {
        "path": display(model.path),
        "sha256": model.sha256,
        "network": description.network,
        "scale": description.scale,
        "halo": description.halo,
    }


def _planned_model(origin: Origin) -> tuple[Taken, str]:
    """What would be taken, with nothing opened."""
    fitting = fitting_model(origin)
    return Taken(fitting.model, fitting.because, ()), ""


def _row(job: Job) -> FileReport:
    return FileReport(display(job.input.name), display(job.output.name), "not started")


def _require_files(source: Source, endings: Endings) -> None:
    if next(source.entries(), None) is not None or source.left_out.broken:
        return
    ignored = source.left_out.ignored.most_common(5)
    others = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in ignored)
    raise InputError(
        f"there are no images in {source.location}" + (f" (other files: {others})" if others else ""),
        hint=f"they end in {' '.join(sorted(endings))}",
    )
