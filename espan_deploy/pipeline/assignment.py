"""What is to be done, looked at before anyone does it: both ends, the models, the files, and the report on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import Any, ClassVar

from espan_deploy.backends.choice import Workload
from espan_deploy.backends.model import ModelFile
from espan_deploy.errors import InputError
from espan_deploy.files import display
from espan_deploy.pipeline.choice import fitting_model, likely_model
from espan_deploy.pipeline.decode import EXTENSIONS
from espan_deploy.pipeline.encoded import FileSettings, file_jobs
from espan_deploy.pipeline.jobs import Job, Taken
from espan_deploy.pipeline.names import NamedFile, outputs
from espan_deploy.pipeline.opened import UpscaleSettings, read_models
from espan_deploy.pipeline.origin import Origin
from espan_deploy.pipeline.report import FileReport, Report
from espan_deploy.stores import Destination, Endings, Entry, Source, Writer, open_stores

SAMPLED = 8
"""Images whose sizes tell how much there is to do."""


class Assignment:
    """Files from a source to a destination; ``plan`` says what would be done.

    endings: of the files that it takes. started: by time.perf_counter. report: once work has begun.
    """

    endings: ClassVar[Endings] = EXTENSIONS

    def __init__(self, source: str | Path, output: str | Path, model: Path | None, settings: UpscaleSettings) -> None:
        """Look at everything that can be wrong before work starts.

        model: None for that of the package's which fits each file.
        Raises InputError, ExportError; BackendUnavailableError for a bucket without what reaches it.
        """
        self.settings = settings
        self.started = time.perf_counter()
        self.chooses = model is None
        self.models = read_models(model)
        self.source: Source
        self.destination: Destination
        self.source, self.destination = self._open_stores(source, output)
        _require_files(self.source, self.endings)
        self.total = self._count()
        self.first = str(model) if model is not None else self._likely_first()
        self.model = self.models[self.first]
        self.report: Report | None = None

    def _likely_first(self) -> str:
        """The model to open first: that of the first file, by its head in a folder, by its name where that is far."""
        if self.source.total is not None:
            with suppress(InputError, OSError):
                for job in islice(self.planned_jobs(), 1):
                    if job.model is not None:
                        return job.model().model
        return likely_model(next(self._names(), ""))

    def _open_stores(self, source: str | Path, output: str | Path) -> tuple[Source, Destination]:
        return open_stores(source, output, self.endings, self._writer())

    def _writer(self) -> Writer | None:
        """What this run is among others that write to the same destination."""
        shard = self.settings.shard
        return None if shard is None else Writer(f"{shard.number}-of-{shard.of}")

    def _count(self) -> int | None:
        """Files to do; None where only the end will tell."""
        if self.settings.shard is None or self.source.total is None:
            return self.source.total
        return sum(1 for _ in self._names())

    def _names(self) -> Iterator[str]:
        return filter(self._is_ours, (entry.name for entry in self.source.entries()))

    def _is_ours(self, name: str) -> bool:
        return self.settings.shard is None or self.settings.shard.holds(name)

    @property
    def expected(self) -> int | None:
        """What ``finished`` comes to; None where only the end will tell."""
        return self.total

    def progress(self) -> str:
        """How far it is, besides the count."""
        megapixels = self.report.output_megapixels if self.report is not None else 0
        return f"{megapixels:,.0f} megapixels" if megapixels else ""

    @property
    def notice(self) -> str:
        """What should be said once while it runs, "" for nothing."""
        return ""

    def files(self) -> Iterator[NamedFile]:
        """All there is to do. Names are given before the files are divided: no two shards give the same one."""
        named = outputs(self._image_entries(), self.settings.format)
        return (file for file in named if self._is_ours(file.entry.name))

    def _image_entries(self) -> Iterator[Entry]:
        return self.source.entries()

    def planned_jobs(self) -> Iterator[Job]:
        """To be looked at, not to be done: no engine is open."""
        settings = FileSettings("", self.settings.encode, self.settings.overwrite)
        choose = _planned_model if self.chooses else None
        return file_jobs(self.source, self.files(), self.destination, settings, choose)

    def plan(self) -> Report:
        """What would be done, touching nothing: for a dry run."""
        engine = {"backend": self.settings.engine, "precision": self.settings.precision}
        report = Report(**self._described(engine))
        for job in self.planned_jobs():
            report.add(job.number, self._planned(job))
        return self._with_left_out(report)

    def _planned(self, job: Job) -> FileReport:
        file = row_of(job)
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

    def _described(self, engine: dict[str, Any]) -> dict[str, Any]:
        """What a report begins with."""
        models = {name: _model_report(model) for name, model in self.models.items()}
        return {
            "engine": engine,
            "model": models[self.first],
            "models": models if self.chooses else {},
            "settings": asdict(self.settings),
        }

    def _workload(self) -> Workload | None:
        """What there is to do, from a sample of the sizes; None where that cannot be told."""
        total = self.total
        if total is None:
            return None
        step = max(1, total // SAMPLED)
        sizes = []
        for job in islice(self.planned_jobs(), 0, step * SAMPLED, step):
            with suppress(InputError, OSError):
                sizes.append(job.input.size())
        if not sizes:
            return None
        pixels = [height * width for height, width in sizes]
        height, width = sizes[pixels.index(median_low(pixels))]
        return Workload(sum(pixels) * total // len(pixels), height, width)

    def _with_left_out(self, report: Report) -> Report:
        left_out = self.source.left_out
        for name, error in left_out.broken:
            report.add(0, FileReport(display(name), "", "failed", error))
        report.ignored = dict(left_out.ignored)
        report.skipped_folders = [display(name) for name in left_out.skipped_folders]
        return report


def row_of(job: Job) -> FileReport:
    """Of a job that nobody has begun."""
    return FileReport(display(job.input.name), display(job.output.name), "not started")


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


def _require_files(source: Source, endings: Endings) -> None:
    if next(source.entries(), None) is not None or source.left_out.broken:
        return
    ignored = source.left_out.ignored.most_common(5)
    others = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in ignored)
    raise InputError(
        f"there are no images in {source.location}" + (f" (other files: {others})" if others else ""),
        hint=f"they end in {' '.join(sorted(endings))}",
    )
