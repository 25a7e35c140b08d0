"""One film on its way: its frames are jobs for the stages, their results are put in order and written."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import av

from espan_deploy.errors import EspanDeployError
from espan_deploy.pipeline.decoded import PictureInput, PixelOutput
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.picture import Picture, Pixels
from espan_deploy.pipeline.report import FileReport
from espan_deploy.video.film import Film, reason
from espan_deploy.video.frames import Damage, FilmFrame, FrameReader
from espan_deploy.video.reel import Reel, Stopped
from espan_deploy.video.report import FilmReport


class Writer(Protocol):
    """Takes a film's results in order, in one thread; ``SegmentedFilm`` says what is what."""

    @property
    def start(self) -> int | None: ...  # noqa: D102

    @property
    def end(self) -> int | None: ...  # noqa: D102

    @property
    def complete(self) -> bool: ...  # noqa: D102

    @property
    def frames(self) -> int: ...  # noqa: D102

    @property
    def computed(self) -> int: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def damage(self) -> Damage: ...  # noqa: D102

    def ends_before(self, frame: FilmFrame) -> bool: ...  # noqa: D102

    def add(self, frame: FilmFrame, pixels: Pixels, *, repeats: bool) -> None: ...  # noqa: D102

    def end_segment(self, next_pts: int | None, damage: Damage) -> None: ...  # noqa: D102

    def finish(self) -> int: ...  # noqa: D102

    def abandon(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Result:
    """A frame and what became of it. pixels: (H, W, 3), None where the frame repeats the one before."""

    frame: FilmFrame
    pixels: Pixels | None


@dataclass
class StageTime:
    """What a stage took so far, its threads together. For one thread at a time."""

    frames: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """One more frame."""
        self.frames += 1
        self.seconds += seconds


class FilmTask:
    """Reads a film, hands its frames to the stages, and writes what comes back, in a thread of its own.

    writer: where results go. room: how many frames may be between reading and writing. threads: of the decoder.
    report: the film's row, which this keeps up to date.
    """

    def __init__(self, film: Film, writer: Writer, report: FilmReport, *, room: int, threads: int) -> None:
        self.film, self.writer, self.report = film, writer, report
        self.written = self.repeats = 0
        self._threads = threads
        self._reel: Reel[Result] = Reel(room)
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._damage = Damage()
        self._started = time.perf_counter()
        self._stages = {"decode": StageTime(), "infer": StageTime(), "encode": StageTime()}
        self._crash: BaseException | None = None
        self._writing = threading.Thread(target=self._write, daemon=True)

    def jobs(self) -> Iterator[Job]:
        """A job for every frame that is not there yet and is not the one before; waits where results are awaited."""
        self._writing.start()
        if self.writer.complete:
            self._reel.close(0)
            return
        reader = FrameReader(self.film, start=self.writer.start, end=self.writer.end, threads=self._threads)
        count = 0
        try:
            for count, frame in enumerate(self._timed(reader), 1):
                self._reel.wait_for_room(count - 1)
                if frame.pixels is None:
                    self.repeats += 1
                    self._reel.put(count - 1, Result(frame, None))
                else:
                    yield self._job(count - 1, frame)
            self._damage = reader.damage
            self._reel.close(count)
        except Stopped:
            return
        except (EspanDeployError, av.FFmpegError, OSError) as exc:
            self._fail(exc)

    def _timed(self, reader: FrameReader) -> Iterator[FilmFrame]:
        frames = iter(reader)
        while True:
            begun = time.perf_counter()
            frame = next(frames, None)
            if frame is None:
                return
            self._stages["decode"].add(time.perf_counter() - begun)
            yield frame

    def _job(self, number: int, frame: FilmFrame) -> Job:
        assert frame.pixels is not None
        name = f"{self.report.input} frame {number + 1}"
        picture = Picture(frame.pixels, None, 16 if self.film.deep else 8, "film")
        return Job(
            number + 1, PictureInput(name, picture), FrameOutput(self, name, partial(self._deliver, number, frame))
        )

    def _deliver(self, number: int, frame: FilmFrame, pixels: Pixels) -> None:
        self._reel.put(number, Result(frame, pixels))

    def frame_ended(self, file: FileReport, failure: BaseException | None) -> None:
        """Take a frame's outcome."""
        if failure is not None:
            self._fail(failure)
        else:
            with self._lock:
                self._stages["infer"].add(file.stage_ms["infer"] / 1e3)

    def give_up(self) -> None:
        """Wait for nothing any more."""
        self._reel.cut()

    def finish(self, lanes: int) -> None:
        """No more frames will come: wait for the film, or for what is left of it to be put away.

        lanes: how many frames are inferred at once.
        """
        if self._writing.ident is None:
            return
        if not self._reel.closed:
            self._reel.cut()
        self._writing.join()
        if self._crash is not None:
            raise self._crash
        threads = {"decode": 1, "infer": lanes, "encode": 1}
        for stage, time_taken in self._stages.items():
            if time_taken.seconds:
                rate = time_taken.frames * threads[stage] / time_taken.seconds
                self.report.stage_frames_per_second[stage] = rate

    def _fail(self, exc: BaseException) -> None:
        self._failure = self._failure or exc
        self._reel.cut()

    def _write(self) -> None:
        before: Pixels | None = None
        try:
            while (result := self._reel.take()) is not None:
                begun = time.perf_counter()
                frame, repeats = result.frame, result.pixels is None
                before = before if result.pixels is None else result.pixels
                assert before is not None, "the first frame repeats none"
                if self.writer.ends_before(frame):
                    self.writer.end_segment(frame.pts, Damage())
                self.writer.add(frame, before, repeats=repeats)
                self._stages["encode"].add(time.perf_counter() - begun)
                self.written += 1
            if not self.writer.complete:
                self.writer.end_segment(None, self._damage)
            self.report.output_bytes = self.writer.finish()
            self.report.status = "damaged" if self.writer.damage else "done"
            self.report.error = str(self.writer.damage)
        except Stopped:
            self.writer.abandon()
            if self.writer.frames:
                self.report.notes.append(f"{self.writer.frames} frames are done; the same command goes on from there")
        except (EspanDeployError, av.FFmpegError, OSError, MemoryError, ValueError) as exc:
            self.writer.abandon()
            self._fail(exc)
        except BaseException as exc:  # a broken invariant: reading stops, and the caller gets the traceback
            self._crash = exc
            self._reel.cut()
        self._describe()

    def _describe(self) -> None:
        row, failure = self.report, self._failure
        row.frames, row.repeated = self.writer.frames, self.writer.frames - self.writer.computed
        row.seconds = time.perf_counter() - self._started
        if self.written:
            row.stage_frames_per_second["end_to_end"] = self.written / row.seconds
        if failure is None:
            return
        row.status = "failed"
        row.error = failure.message if isinstance(failure, EspanDeployError) else reason(failure)
        row.hint = failure.hint if isinstance(failure, EspanDeployError) else ""


class FrameOutput(PixelOutput):
    """A frame's place in a film."""

    def __init__(self, task: FilmTask, name: str, deliver: partial[None]) -> None:
        super().__init__(name, deliver)
        self.task = task
