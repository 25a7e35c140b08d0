"""An upscaling whose source may hold films among its pictures: all go through the same stages, in one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from itertools import islice, takewhile
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from espan_deploy.backends.choice import Workload
from espan_deploy.errors import BackendUnavailableError, EspanDeployError, InputError
from espan_deploy.files import display
from espan_deploy.machine import usable_cores
from espan_deploy.pipeline.assignment import SAMPLED
from espan_deploy.pipeline.decode import EXTENSIONS
from espan_deploy.pipeline.decoded import PictureInput
from espan_deploy.pipeline.encode import FORMATS
from espan_deploy.pipeline.encoded import FileOutput, FileSettings, digest
from espan_deploy.pipeline.jobs import Job, Taken
from espan_deploy.pipeline.opened import FileModels, UpscaleSettings
from espan_deploy.pipeline.origin import Origin
from espan_deploy.pipeline.picture import Picture
from espan_deploy.pipeline.report import FileReport, Report
from espan_deploy.pipeline.upscale import Upscaling
from espan_deploy.stores import Destination, Entry, MadeFrom, Source, State
from espan_deploy.stores.folder import FolderDestination, FolderSource, sha256_of
from espan_deploy.stores.memory import Memory
from espan_deploy.video.report import FilmReport

if TYPE_CHECKING:
    from espan_deploy.video.film import Film
    from espan_deploy.video.join import Stretch
    from espan_deploy.video.task import FilmTask, Writer

ENDINGS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".wmv", ".flv", ".y4m"}
)
"""Of films, by which a folder's are found."""

FRAMES_VERSION = 1
"""Goes up when the same film, model and settings give another film than before."""

MOST_WAITING = 32
"""Frames between reading and writing, where memory allows."""


@dataclass(frozen=True)
class FilmSettings:
    """How films are written. codec: a name of CODECS, or "auto". crf: quality, preset: the encoder's
    own word for how much work it spends on size; None for the codec's defaults.

    start, end: seconds of the stretch wanted, None for all. preview: one frame only, from ``start`` or the middle, as
    two PNG files, before and after.
    """

    codec: str = "auto"
    crf: int | None = None
    preset: str | None = None
    start: float | None = None
    end: float | None = None
    preview: bool = False


class FilmUpscaling(Upscaling):
    """Pictures first, then one film after another, without a pause between.

    pipe: where the one film of the source goes uncompressed, instead of to a destination.
    """

    endings = EXTENSIONS | ENDINGS

    def __init__(
        self,
        source: str | Path,
        output: str | Path,
        model: Path | None,
        settings: UpscaleSettings,
        films: FilmSettings,
        *,
        pipe: BinaryIO | None = None,
    ) -> None:
        self.films, self.pipe = films, pipe
        self.tasks: list[FilmTask] = []
        self._waiting: list[Entry] = []
        self._rows: list[FilmReport] = []
        self._facts: dict[str, Film] = {}
        super().__init__(source, output, model, settings)

    def _open_stores(self, source: str | Path, output: str | Path) -> tuple[Source, Destination]:
        if self.pipe is None:
            return super()._open_stores(source, output)
        films = FolderSource(Path(source), ENDINGS)
        if films.total != 1:
            raise InputError(f"a pipe takes one film, and {films.location} has {films.total}", hint="name a film")
        return films, Memory()

    def _image_entries(self) -> Iterator[Entry]:
        """The pictures; films are put aside until there are no more."""
        self._waiting = []
        for entry in super()._image_entries():
            if not is_film(entry.name):
                yield entry
            elif self._is_ours(entry.name):
                self._waiting.append(entry)

    def _jobs(self, opened: FileModels) -> Iterator[Job]:
        yield from super()._jobs(opened)
        model, settings_sha256 = None, opened.settings_sha256
        if self._waiting and opened.choose is not None:  # a film's own codec is a lossy one
            taken, settings_sha256 = opened.choose(Origin(True, "a film"))
            model = partial(_same, taken)
        while self._waiting and not self._stopped:
            entry = self._waiting.pop(0)
            row = _row(entry)
            self._rows.append(row)
            try:
                jobs = self._film_jobs(entry.name, row, settings_sha256)
            except (EspanDeployError, OSError) as exc:
                row.status, row.error = "failed", getattr(exc, "message", None) or str(exc)
                row.hint = getattr(exc, "hint", "")
            else:
                yield from (replace(job, model=model) for job in takewhile(lambda _: not self._stopped, jobs))

    def _film_jobs(self, name: str, row: FilmReport, settings_sha256: str) -> Iterable[Job]:
        """A film's, none where it is done already. Raises what is wrong with it, before any work."""
        from espan_deploy.video.task import FilmTask

        film = self._film(name)
        row.height, row.width, row.expected_frames = film.height, film.width, film.expected_frames
        row.notes += film_notes(film)
        if self.films.preview:
            return self._preview(film, name, row, settings_sha256)
        writer = self._piped(film, row) if self.pipe is not None else self._segmented(film, name, row, settings_sha256)
        if writer is None:
            row.status = "skipped"
            return ()
        task = FilmTask(film, writer, row, room=self._room(film), threads=self._threads)
        self.tasks.append(task)
        return task.jobs()

    def _film(self, name: str) -> Film:
        """A film's facts. Raises BackendUnavailableError, or InputError where it is none."""
        if find_spec("av") is None:
            raise BackendUnavailableError(
                "films need PyAV, which is not installed", hint="pip install 'espan-deploy[video]'"
            )
        if not isinstance(self.source, FolderSource):
            raise InputError("films are read from folders of this machine", hint="copy it here first")
        from espan_deploy.video.film import read_film

        if name not in self._facts:
            self._facts[name] = read_film(self.source.root / name)
        return self._facts[name]

    def _piped(self, film: Film, row: FilmReport) -> Writer:
        from espan_deploy.video.codecs import Encoding
        from espan_deploy.video.pipe import Y4M, PipedFilm

        assert self.pipe is not None
        row.output = "-"
        row.notes.append("a pipe has no time stamps: frames go one for one, at the film's average rate")
        scale = self.model.description.scale
        encoding = Encoding(Y4M, film, film.height * scale, film.width * scale)
        return PipedFilm(encoding, self.pipe, stretch_of(film, self.films))

    def _segmented(self, film: Film, name: str, row: FilmReport, settings_sha256: str) -> Writer | None:
        from espan_deploy.video.codecs import Encoding, codec_named
        from espan_deploy.video.join import container_suffix, refused_streams
        from espan_deploy.video.writer import FilmFile, SegmentedFilm

        if not isinstance(self.destination, FolderDestination):
            raise InputError("films are written to folders of this machine", hint="name an output folder here")
        codec, scale = codec_named(self.films.codec, film), self.model.description.scale
        settings = self.films
        size = (film.height * scale, film.width * scale)
        encoding = Encoding(codec, film, *size, settings.crf, settings.preset, self._threads)
        encoding.opened()
        suffix = container_suffix(Path(name).suffix.lower(), codec)
        output = str(Path(name).with_suffix(suffix))
        refused = refused_streams(encoding, suffix)
        row.output = display(output)
        if film.sample_aspect != 1 and not codec.says_aspect:
            row.notes.append(f"its pixels are {film.sample_aspect} as wide as high, which {codec.name} does not say")
        row.notes += [f"left out, for {suffix} does not take it: {text}" for text in refused.values()]
        made_from = MadeFrom(
            sha256_of(film.path),
            digest(
                pictures=settings_sha256, frames=FRAMES_VERSION, encoder=encoding.identity, films=asdict(self.films)
            ),
        )
        if not self.settings.overwrite:
            state = self.destination.state(output, made_from)
            if state is State.CURRENT:
                return None
            if state is State.FOREIGN:
                raise InputError(
                    f"{row.output} is there already and was not made by this tool, or was edited since",
                    hint="--overwrite replaces it",
                )
        stretch = stretch_of(film, self.films)
        file = FilmFile(output, self.destination, encoding, made_from, stretch, frozenset(refused))
        if self.settings.overwrite:
            file.remove_segments()
        return SegmentedFilm(file)

    def _preview(self, film: Film, name: str, row: FilmReport, settings_sha256: str) -> Iterable[Job]:
        """One frame to two pictures: as it is, and through the network."""
        from PIL import Image

        from espan_deploy.video.frames import FrameReader

        middle = film.start + int(Fraction(film.duration_seconds or 0) / 2 / film.time_base)
        wanted = stretch_of(film, self.films).start
        frame = next(iter(FrameReader(film, start=middle if wanted is None else wanted)), None)
        if frame is None or frame.pixels is None:
            raise InputError("there is no frame at that time", hint="--start takes seconds within the film")
        picture = Picture(frame.pixels, None, 16 if film.deep else 8, "film")
        before, after = f"{name}.before.png", f"{name}.after.png"
        part = self.destination.create(before)
        shown = (
            frame.pixels if frame.pixels.dtype == np.uint8 else np.rint(frame.pixels.clip(0, 1) * 255).astype(np.uint8)
        )
        Image.fromarray(shown).save(part.file, "png")
        source = PictureInput(name, picture)
        part.publish(MadeFrom(source.sha256(), "preview"), None)
        row.output, row.status = f"{display(before)}, {display(after)}", "done"
        settings = FileSettings(settings_sha256, self.settings.encode, overwrite=True)
        return [Job(1, source, FileOutput(self.destination, after, FORMATS["png"], settings))]

    @property
    def _threads(self) -> int:
        return self.settings.threads or usable_cores()

    def _room(self, film: Film) -> int:
        """Frames between reading and writing."""
        frame = film.height * film.width * self.model.description.scale**2 * 3 * (4 if film.deep else 1)
        return max(4, min(MOST_WAITING, self.settings.memory_bytes // 4 // frame))

    def _take(self, report: Report, job: Job, file: FileReport, failure: BaseException | None) -> None:
        task = getattr(job.output, "task", None)
        if task is None:
            super()._take(report, job, file, failure)
        else:
            task.frame_ended(file, failure)

    def _crashed(self, exc: BaseException) -> None:
        for task in self.tasks:
            task.give_up()

    def _finish(self, report: Report, jobs: Iterator[Job]) -> None:
        for task in self.tasks:
            task.finish(self.lanes)
        super()._finish(report, jobs)
        for row in (*self._rows, *map(_row, self._waiting)):
            report.add(0, row)

    def _workload(self) -> Workload | None:
        """The largest of the first films, if there are any: their frames are most of the work."""
        pictures = super()._workload()
        if self.films.preview or not isinstance(self.source, FolderSource):
            return pictures
        films = self._readable(islice(filter(is_film, self._names()), SAMPLED))
        loads = [Workload(self._frames(film) * film.height * film.width, film.height, film.width) for film in films]
        return max([*loads, *([pictures] if pictures else [])], key=lambda load: load.pixels, default=None)

    def _frames(self, film: Film) -> int:
        """That will be upscaled, about."""
        duration, start, end = film.duration_seconds, self.films.start or 0.0, self.films.end
        if not duration:
            return film.expected_frames
        stretch = min(duration, duration if end is None else end) - start
        return max(0, int(film.expected_frames * stretch / duration))

    @property
    def expected(self) -> int | None:
        """Pictures and frames; None where a film does not say how many it has, or listing has not ended."""
        if self.total is None:
            return None
        pictures, names = super().expected, list(filter(is_film, self._names()))
        frames = [1 if self.films.preview else self._frames(film) for film in self._readable(names)]
        return None if pictures is None or not all(frames) else pictures - len(names) + sum(frames)

    @property
    def finished(self) -> int:
        """Pictures and frames with an outcome."""
        return super().finished + sum(task.repeats for task in self.tasks)

    def progress(self) -> str:
        """How far it is, besides the count: the film at work, its frames and bytes so far."""
        if not self.tasks:
            return super().progress()
        task = self.tasks[-1]
        return f"{task.report.output}: {task.written} frames, {task.writer.size / 1e6:.1f} MB"

    def _readable(self, names: Iterable[str]) -> list[Film]:
        """Those that can be opened; the others will be failures of their own."""
        films = []
        for name in names:
            with suppress(EspanDeployError, OSError):
                films.append(self._film(name))
        return films

    def _at_once(self) -> int | None:
        at_once = super()._at_once()
        return None if self._waiting else at_once

    def plan(self) -> Report:
        """What would be done: films by their headers alone."""
        report = super().plan()
        for entry in self._waiting:
            report.add(0, self._planned_film(entry))
        return report

    def _planned_film(self, entry: Entry) -> FilmReport:
        row = _row(entry)
        try:
            film = self._film(entry.name)
            row.status, row.height, row.width = "planned", film.height, film.width
            row.expected_frames, row.notes = film.expected_frames, film_notes(film)
        except (EspanDeployError, OSError) as exc:
            row.status, row.error = "failed", getattr(exc, "message", None) or str(exc)
        return row


def _same(taken: Taken) -> Taken:
    """One model for all frames."""
    return taken


def _row(entry: Entry) -> FilmReport:
    return FilmReport(display(entry.name), display(entry.name), "not started")


def is_film(name: str) -> bool:
    """By its ending."""
    return Path(name).suffix.lower() in ENDINGS


def stretch_of(film: Film, settings: FilmSettings) -> Stretch:
    """Seconds as time stamps. Raises InputError for an empty stretch."""
    from espan_deploy.video.join import Stretch

    def stamp(seconds: float | None) -> int | None:
        return None if seconds is None else film.start + ceil(Fraction(str(seconds)) / film.time_base)

    start, end = stamp(settings.start), stamp(settings.end)
    if start is not None and end is not None and start >= end:
        raise InputError(
            f"from {settings.start} s to {settings.end} s there is nothing", hint="--end must be after --start"
        )
    return Stretch(start, end)


def film_notes(film: Film) -> list[str]:
    """What a user should know about how this film is read."""
    from espan_deploy.video.colour import HDR_TRANSFERS

    notes = [f"colours: {film.colour}"]
    if film.colour.guessed:
        notes.append(f"the film does not say, and was taken as players take it: {', '.join(film.colour.guessed)}")
    if film.rotation:
        notes.append(f"turned by {film.rotation} degrees, as it is shown")
    if film.interlaced:
        notes.append("interlaced: fields were woven into frames (bwdif), one for one")
    if film.colour.transfer in HDR_TRANSFERS:
        notes.append(
            f"HDR ({HDR_TRANSFERS[film.colour.transfer]}) passes with its tags, but the network was trained on SDR"
        )
    if film.has_alpha:
        notes.append("its transparency is left out")
    return notes
