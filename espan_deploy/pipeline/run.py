"""The stages at work: threads that decode, infer and encode at once, and a run that nothing stops half-way."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from espan_deploy.backends.base import Runner
from espan_deploy.errors import EspanDeployError, InputError
from espan_deploy.pipeline.decode import decode, read_size
from espan_deploy.pipeline.encode import EncodeSettings, check_holds, is_streamed
from espan_deploy.pipeline.infer import Fallback, Lane
from espan_deploy.pipeline.jobs import Job, display
from espan_deploy.pipeline.manifest import Manifest, Record, State
from espan_deploy.pipeline.plan import BatchPolicy, TilePolicy, pick_batch
from espan_deploy.pipeline.queues import Aborted, Budget, Channel
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.tiles import kept_height
from espan_deploy.pipeline.work import Region, Work

POLL_SECONDS = 0.05

MAX_WAITING_PIXELS = 1 << 22
"""In front of a lane: beyond four megapixels, waiting longer makes no better batches."""

CANVAS_BYTES = 4
"""Of a pixel of an image that Pillow holds whole, whether it has three channels or four."""

OWN_BYTES = 1 << 28
"""What the process takes besides activations and images."""

LEAST_SHARE = 0.25
"""Of the memory for activations that an image gets whose canvas takes more than its own half."""

MAX_FILE_BYTES = 1 << 31
"""A larger image file is no image that this machine could hold."""

STOPPING_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk became read-only",
}
"""What makes every further file fail as well."""


@dataclass(frozen=True)
class RunSettings:
    """in_flight_bytes: of images between the stages; activations may take as much."""

    settings_sha256: str
    encode: EncodeSettings
    tiles: TilePolicy
    batch: BatchPolicy
    overwrite: bool = False
    in_flight_bytes: int = 1 << 30
    decoders: int = 1
    encoders: int = 1


class Run:
    """Upscales a list of jobs into a folder.

    runners: one for each inference thread; fallback: FP32, for what they cannot do.
    ``execute`` returns when every job has its outcome; ``stop`` lets those in flight finish and starts no more.
    """

    def __init__(
        self,
        jobs: list[Job],
        folder: Path,
        *,
        manifest: Manifest,
        runners: list[Runner],
        fallback: Fallback,
        settings: RunSettings,
    ) -> None:
        self.jobs, self.folder, self.manifest, self.settings = jobs, folder, manifest, settings
        self.description = runners[0].description
        self.lanes = [Lane(runner, fallback) for runner in runners]
        self.reports = [FileReport(display(job.name), display(job.output), "not started") for job in jobs]
        self.stopped_because = ""
        self._by_job = {id(job): report for job, report in zip(jobs, self.reports, strict=True)}
        self._pending = iter(jobs)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # Two batches for every lane: one at work, one that fills.
        ahead = 2 * len(runners)
        self._regions: Channel[Region] = Channel(ahead, ahead * min(settings.batch.pixels, MAX_WAITING_PIXELS), _pixels)
        self._bands: Channel[tuple[Work, int]] = Channel(1, settings.in_flight_bytes // 8, _band_bytes)
        self._budget = Budget(settings.in_flight_bytes)
        self._held: dict[int, int] = {}
        self._crash: BaseException | None = None

    @property
    def finished(self) -> int:
        """Jobs with an outcome, so far."""
        return sum(report.status != "not started" for report in self.reports)

    def stop(self) -> None:
        """Start nothing more. Safe in a signal handler."""
        self._stopping.set()

    def execute(self, on_progress: Callable[[], None] = lambda: None) -> list[FileReport]:
        """Do the jobs, calling ``on_progress`` a few times a second. Failures are in the reports."""
        decoders = [self._thread(self._decode_loop) for _ in range(self.settings.decoders)]
        lanes = [self._thread(self._infer_loop, lane) for lane in self.lanes]
        encoders = [self._thread(self._encode_loop) for _ in range(self.settings.encoders)]
        for threads, after in ((decoders, self._regions.close), (lanes, self._bands.close), (encoders, lambda: None)):
            for thread in threads:
                while thread.is_alive():
                    thread.join(POLL_SECONDS)
                    on_progress()
            after()
        if self._crash is not None:
            raise self._crash
        return self.reports

    def _thread(self, loop: Callable[..., None], *arguments: object) -> threading.Thread:
        def guarded() -> None:
            try:
                loop(*arguments)
            except Aborted:
                pass
            except BaseException as exc:  # a broken invariant: everybody stops, the caller gets the traceback
                self._crash = self._crash or exc
                for waiting in (self._regions, self._bands, self._budget):
                    waiting.abort()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    # Decoding

    def _decode_loop(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                job = next(self._pending, None)
            if job is None:
                return
            start = time.perf_counter()
            try:
                work = self._begin(job)
            except (EspanDeployError, OSError, MemoryError) as exc:
                self._fail(job, exc)
                continue
            if work is None:
                continue
            report = self._by_job[id(job)]
            report.stage_ms["decode"] = (time.perf_counter() - start) * 1e3
            report.stage_ms["end_to_end"] = start  # until it ends: then the difference
            for region in work.regions:
                if not work.failed:
                    self._regions.put(region)

    def _begin(self, job: Job) -> Work | None:
        """Read and decode; None where the output is there already."""
        report = self._by_job[id(job)]
        data = read_file(job.source)
        input_sha256 = hashlib.sha256(data).hexdigest()
        if not self.settings.overwrite:
            state = self.manifest.state(job.output, input_sha256, self.settings.settings_sha256)
            if state is State.CURRENT:
                report.status = "skipped"
                return None
            if state is State.FOREIGN:
                raise InputError(
                    f"{display(job.output)} is there already and was not made by this tool, or was edited since",
                    hint="--overwrite replaces it",
                )
        height, width, _ = read_size(data)
        report.height, report.width = height, width
        scale = self.description.scale
        check_holds(job.format, height * scale, width * scale, 4, deep=False)
        whole = 0 if is_streamed(job.format, self.settings.encode) else height
        canvas = whole * width * scale**2 * CANVAS_BYTES
        room = self.settings.in_flight_bytes
        share = min(1.0, max(LEAST_SHARE, (2 * room - canvas - OWN_BYTES) / room))
        rows = self.settings.tiles.plan(height, width, self.description, share=share)
        kept_rows = max(map(kept_height, rows))
        held = self._budget.acquire(width * (height * 4 + kept_rows * 4 * scale**2) + canvas)
        try:
            picture = decode(data)
            if (picture.height, picture.width) != (height, width):
                raise InputError(f"its header says {width}x{height}, its pixels are {picture.width}x{picture.height}")
            target = self.folder / job.output
            work = Work(
                job,
                picture,
                input_sha256=input_sha256,
                rows=rows,
                scale=scale,
                target=target,
                settings=self.settings.encode,
            )
        except BaseException:
            self._budget.release(held)
            raise
        with self._lock:
            self._held[id(work)] = held
        return work

    # Inference

    def _infer_loop(self, lane: Lane) -> None:
        def pick(waiting: list[Region]) -> list[int]:
            return pick_batch([region.key for region in waiting], self.settings.batch)

        while batch := self._regions.take(pick):
            batch = [region for region in batch if not region.work.failed]
            if batch:
                self._infer(lane, batch)

    def _infer(self, lane: Lane, batch: list[Region]) -> None:
        start = time.perf_counter()
        try:
            target = batch[0].work.room_for(batch[0]) if len(batch) == 1 else None
            results, redone = lane.upscale([region.array() for region in batch], batch[0].kept, target)
        except (EspanDeployError, MemoryError) as exc:
            if len(batch) == 1:
                self._abandon(batch[0].work, exc)
                return
            for region in batch:  # which of them it was
                self._infer(lane, [region])
            return
        seconds = (time.perf_counter() - start) / len(batch)
        for index, region in enumerate(batch):
            region.work.redone_fp32 += redone[index]
            complete = region.work.place(region, results[index], seconds)
            results[index] = None  # the band has it; a batch must not keep them all
            if complete:
                self._bands.put((region.work, region.band))

    # Encoding

    def _encode_loop(self) -> None:
        while taken := self._bands.take():
            work, band = taken[0]
            del taken
            if work.failed:
                continue
            try:
                if work.encode(band):
                    self._publish(work)
                elif work.failed:
                    work.discard()  # what this band opened after that
            except (EspanDeployError, OSError, MemoryError, ValueError) as exc:
                self._abandon(work, exc)
            del work

    def _publish(self, work: Work) -> None:
        report = self._by_job[id(work.job)]
        digest, size = work.sync()
        with self._lock:
            self.manifest.add(Record(work.job.output, digest, work.input_sha256, self.settings.settings_sha256))
        work.publish()
        report.output_bytes = size
        work.fill(report)
        report.stage_ms["end_to_end"] = (time.perf_counter() - report.stage_ms["end_to_end"]) * 1e3
        report.status = "done"
        self._release(work)

    # Failures

    def _abandon(self, work: Work, exc: BaseException) -> None:
        work.discard()
        self._release(work)
        self._fail(work.job, exc)

    def _release(self, work: Work) -> None:
        with self._lock:
            held = self._held.pop(id(work), 0)
        self._budget.release(held)

    def _fail(self, job: Job, exc: BaseException) -> None:
        report = self._by_job[id(job)]
        with self._lock:
            if report.status == "failed":
                return
            report.status = "failed"
        report.stage_ms = {}
        if isinstance(exc, EspanDeployError):
            report.error, report.hint = exc.message, exc.hint
        elif isinstance(exc, OSError):
            report.error = exc.strerror or str(exc)
            if exc.errno in STOPPING_ERRORS:
                self.stopped_because = STOPPING_ERRORS[exc.errno]
                self._stopping.set()
        else:
            report.error = f"not enough memory: {exc}" if isinstance(exc, MemoryError) else str(exc)


def _pixels(region: Region) -> int:
    height, width = region.tile.shape
    return height * width


def _band_bytes(item: tuple[Work, int]) -> int:
    work, band = item
    return work.band_bytes(band)


def read_file(path: Path) -> bytes:
    """A regular file's bytes. Raises InputError for anything else, OSError where it cannot be read."""
    # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(f"the file has {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
        return file.readall()
