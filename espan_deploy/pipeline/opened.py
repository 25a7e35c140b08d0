"""A run's models in one process: engines, opened as pictures need them, and what results then depend on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from espan_deploy import backends
from espan_deploy.backends.choice import Workload
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.models import MODELS
from espan_deploy.pipeline.choice import Fitting, fitting_model
from espan_deploy.pipeline.encode import EncodeSettings, PngCompression
from espan_deploy.pipeline.encoded import Choose, FileSettings, digest, file_jobs
from espan_deploy.pipeline.engine import Decided, EngineSettings, OpenEngine
from espan_deploy.pipeline.jobs import Job, Taken
from espan_deploy.pipeline.names import NamedFile
from espan_deploy.pipeline.origin import Origin
from espan_deploy.pipeline.run import Ended, Run
from espan_deploy.pipeline.shard import Shard
from espan_deploy.stores import Destination, Reader

PIPELINE_VERSION = 3
"""Goes up when the same input, model and settings give other bytes than before."""


def read_models(model: Path | None) -> dict[str, ModelFile]:
    """The model named; with None, the package's own by name, the one for pictures of which nothing is known first.

    Raises InputError or ExportError.
    """
    files = {name: packaged.path for name, packaged in MODELS.items()} if model is None else {str(model): model}
    return {name: read_model(path) for name, path in files.items()}


class OpenModels:
    """Models with their engines, each opened when first asked for and kept to the end. A context manager.

    models: by name, of one architecture and scale, so that the same choice and tiles suit them all; where there are
    several, each picture gets the one that fits. first: opened on entering, which settles how many lanes there are; ""
    for the first of ``models``. decided: what models run in of which that is settled, by name.
    engines: those open. The other arguments are those of :class:`OpenEngine`.
    Entering raises BackendUnavailableError or EngineBuildError.
    """

    def __init__(
        self,
        models: Mapping[str, ModelFile],
        settings: EngineSettings,
        *,
        first: str = "",
        at_once: int | None,
        workload: Workload | None = None,
        choice: backends.Choice | None = None,
        decided: Mapping[str, Decided] | None = None,
    ) -> None:
        self.models, self.settings = models, settings
        self.first = first or next(iter(models))
        self.chooses = len(models) > 1
        self.engines: dict[str, OpenEngine] = {}
        self._at_once, self._workload, self._decided = at_once, workload, decided or {}
        self._choice = choice or backends.choose(settings.engine, models[self.first])
        self._lanes: int | None = None
        self._opening = threading.Lock()

    def __enter__(self) -> OpenModels:
        self._lanes = len(self.get(self.first).lanes)
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.engines.values():
            engine.close()

    @property
    def engine(self) -> OpenEngine:
        """Of the first model."""
        return self.engines[self.first]

    def get(self, name: str) -> OpenEngine:
        """A model's engine. From any thread; who wants one that is open does not wait. Raises as entering does."""
        if name not in self.engines:
            with self._opening:
                if name not in self.engines:
                    self.engines[name] = self._opened(name)
        return self.engines[name]

    def _opened(self, name: str) -> OpenEngine:
        model, settings, choice = self.models[name], self.settings, self._choice
        if name in self._decided:
            settings = replace(settings, **asdict(self._decided[name]))
            choice = backends.choose(settings.engine, model)
        return OpenEngine(model, choice, settings, at_once=self._at_once, workload=self._workload, lanes=self._lanes)

    def taken(self, fitting: Fitting) -> Taken:
        """A model for a picture, its engine open. From any thread. Raises as entering does."""
        return Taken(fitting.model, fitting.because, self.get(fitting.model).lanes)

    def decide(self) -> dict[str, Decided]:
        """What each model runs in; opens them all. Raises as entering does."""
        decisions = {name: self.get(name).decision for name in self.models}
        return {name: Decided(made.backend.name, made.precision) for name, made in decisions.items()}


@dataclass(frozen=True)
class UpscaleSettings(EngineSettings):
    """What the user may choose. quality: None for the format's default. shard: of the files; None for all."""

    format: str = "same"
    quality: int | None = None
    png_compression: PngCompression = "fast"
    overwrite: bool = False
    shard: Shard | None = None

    @property
    def encode(self) -> EncodeSettings:
        """What encoders get of it."""
        return EncodeSettings(self.quality, self.png_compression)


class FileModels(OpenModels):
    """For files between stores, whose results say what they were made of."""

    settings: UpscaleSettings

    def __enter__(self) -> FileModels:
        super().__enter__()
        return self

    @property
    def settings_sha256(self) -> str:
        """Of what the first model's results depend on besides their input."""
        return self._settings_sha256(self.first)

    def _settings_sha256(self, name: str) -> str:
        engine = self.get(name)
        return digest(
            pipeline=PIPELINE_VERSION,
            model=engine.model.sha256,
            engine=engine.decision.backend.name,
            precision=engine.decision.precision,
            quality=self.settings.quality,
            png_compression=self.settings.png_compression,
        )

    @property
    def choose(self) -> Choose | None:
        """The model that fits a file, from any thread, raising as entering does; None where there is no choice."""
        return self._chosen if self.chooses else None

    def _chosen(self, origin: Origin) -> tuple[Taken, str]:
        taken = self.taken(fitting_model(origin))
        return taken, self._settings_sha256(taken.model)

    def jobs(self, reader: Reader, files: Iterable[NamedFile], destination: Destination) -> Iterator[Job]:
        """A job for every file, as they come."""
        settings = FileSettings(self.settings_sha256, self.settings.encode, self.settings.overwrite)
        return file_jobs(reader, files, destination, settings, self.choose)

    def run(
        self,
        jobs: Iterable[Job],
        reader: Reader,
        destination: Destination,
        *,
        on_end: Ended,
        on_crash: Callable[[BaseException], None] = lambda _: None,
    ) -> Run:
        """The stages, with as many threads as transfers at once."""
        settings, looking_up = self.engine.run_settings(), destination.transfers
        return Run(
            jobs,
            lanes=self.engine.lanes,
            settings=replace(
                settings,
                decoders=max(settings.decoders, reader.transfers, looking_up),
                publishers=max(settings.publishers, destination.transfers),
            ),
            on_end=on_end,
            on_crash=on_crash,
        )
