"""The stages at work: threads that decode, infer, encode and publish at once, and a run that nothing stops half-way."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from espan_deploy.errors import EspanDeployError, InputError
from espan_deploy.files import display
from espan_deploy.pipeline.approximate import begin_of_remark, measured_difference
from espan_deploy.pipeline.infer import Lane
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.plan import BatchPolicy, TilePolicy, next_batch
from espan_deploy.pipeline.queues import Aborted, Budget, Channel
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.tiles import kept_height
from espan_deploy.pipeline.work import Region, Work

POLL_SECONDS = 0.05

MAX_WAITING_PIXELS = 1 << 22
"""In front of a lane: beyond four megapixels, waiting longer makes no better batches."""

PUBLISHERS = 4
"""Waiting for the disk takes no core, and it does several files nearly as soon as one."""

OWN_BYTES = 1 << 28
"""What the process takes besides activations and images."""

LEAST_SHARE = 0.25
"""Of the memory for activations that an image gets whose canvas takes more than its own half."""

STOPPING_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the destination became read-only",
}
"""What makes every further file fail as well."""


Ended = Callable[[Job, FileReport, BaseException | None], None]
"""Takes a job's outcome, and what made it fail if it did. Called once for every job begun, by any thread."""


@dataclass(frozen=True)
class RunSettings:
    """in_flight_bytes: of images between the stages; activations may take as much.

    decoders, encoders, publishers: how many threads of each; the first two compute, the last wait.
    """

    tiles: TilePolicy
    batch: BatchPolicy
    in_flight_bytes: int = 1 << 30
    decoders: int = 1
    encoders: int = 1
    publishers: int = PUBLISHERS


class Run:
    """Upscales jobs as they come, from a list or from an iterator that never ends.

    jobs: asked for the next one by one thread at a time, when a decoder is free; it may wait. Where it raises an
    EspanDeployError, those in flight are finished and ``stopped_because`` says why.
    lanes: one for each inference thread, of all jobs that bring no model of their own.
    on_call: told how many images and tiles an engine call has.
    on_crash: called when a broken invariant ends the stages, so that jobs which are being waited for end too.
    remark: where tiles are approximate, how far they are from the whole image, measured on the first that is cut.
    ``execute`` returns when every job has its outcome; ``stop`` lets those in flight finish and starts no more.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        *,
        lanes: Sequence[Lane],
        settings: RunSettings,
        on_end: Ended,
        on_call: Callable[[int], None] = lambda _: None,
        on_crash: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self.settings = settings
        self.description = lanes[0].description
        self.lanes = lanes
        self.finished = 0
        self.stopped_because = ""
        self.remark = ""
        self._cut_approximately = self.description.halo is None
        self._jobs, self._taking = iter(jobs), threading.Lock()
        self._on_end, self._on_call, self._on_crash = on_end, on_call, on_crash
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # Two batches for every lane: one at work, one that fills.
        ahead, pixels = 2 * len(lanes), min(settings.batch.pixels, MAX_WAITING_PIXELS)
        self._regions: Channel[Region] = Channel(ahead, ahead * pixels, _pixels)
        # What every lane gives at once, so that none waits. What lies longer leaves the processor's caches, and its
        # memory is new memory for others, which takes as long as filling it.
        self._bands: Channel[tuple[Work, int]] = Channel(len(lanes), len(lanes) * pixels, _band_pixels)
        self._complete: Channel[Work] = Channel(2 * settings.publishers)
        self._budget = Budget(settings.in_flight_bytes)
        self._crash: BaseException | None = None

    def stop(self) -> None:
        """Start nothing more. Safe in a signal handler."""
        self._stopping.set()

    def execute(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Do the jobs, calling ``on_progress`` a few times a second. A job's failure raises nothing."""
        decoders = [self._thread(self._decode_loop) for _ in range(self.settings.decoders)]
        lanes = [self._thread(self._infer_loop, number) for number in range(len(self.lanes))]
        encoders = [self._thread(self._encode_loop) for _ in range(self.settings.encoders)]
        publishers = [self._thread(self._publish_loop) for _ in range(self.settings.publishers)]
        for threads, after in (
            (decoders, self._regions.close),
            (lanes, self._bands.close),
            (encoders, self._complete.close),
            (publishers, lambda: None),
        ):
            for thread in threads:
                while thread.is_alive():
                    thread.join(POLL_SECONDS)
                    on_progress()
            after()
        if self._crash is not None:
            raise self._crash

    def _thread(self, loop: Callable[..., None], *arguments: object) -> threading.Thread:
        def guarded() -> None:
            try:
                loop(*arguments)
            except Aborted:
                pass
            except BaseException as exc:  # a broken invariant: everybody stops, the caller gets the traceback
                self._crash = self._crash or exc
                for waiting in (self._regions, self._bands, self._complete, self._budget):
                    waiting.abort()
                self._on_crash(exc)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    # Decoding

    def _decode_loop(self) -> None:
        while not self._stopping.is_set():
            job = self._next()
            if job is None:
                return
            report = FileReport(display(job.input.name), display(job.output.name), "not started")
            start = time.perf_counter()
            try:
                work = self._begin(job, report)
            except (EspanDeployError, OSError, MemoryError) as exc:
                self._fail(job, report, exc)
                continue
            if work is None:
                continue
            report.stage_ms["decode"] = (time.perf_counter() - start) * 1e3
            report.stage_ms["end_to_end"] = start  # until it ends: then the difference
            for region in work.regions:
                if not work.failed:
                    self._regions.put(region)

    def _next(self) -> Job | None:
        """The next job; None where there is none any more, or none can be had."""
        with self._taking:
            try:
                return next(self._jobs, None)
            except EspanDeployError as exc:
                self.stopped_because = exc.message
                self._stopping.set()
                return None

    def _begin(self, job: Job, report: FileReport) -> Work | None:
        """Read and decode; None where the output is there already."""
        lanes = self.lanes
        if job.model is not None:
            taken = job.model()
            report.model, report.model_because, lanes = taken.model, taken.because, taken.lanes
        if job.output.is_done(job.input):
            report.status = "skipped"
            self._end(job, report)
            return None
        height, width = job.input.size()
        report.height, report.width = height, width
        scale = self.description.scale
        canvas = job.output.held_bytes(height * scale, width * scale)
        room = self.settings.in_flight_bytes
        share = min(1.0, max(LEAST_SHARE, (2 * room - canvas - OWN_BYTES) / room))
        rows = self.settings.tiles.plan(height, width, self.description, share=share)
        kept_rows = max(map(kept_height, rows))
        held = self._budget.acquire(width * (height * 4 + kept_rows * 4 * scale**2) + canvas)
        try:
            picture = job.input.picture()
            if (picture.height, picture.width) != (height, width):
                raise InputError(f"its header says {width}x{height}, its pixels are {picture.width}x{picture.height}")
            return Work(job, report, picture, lanes=lanes, rows=rows, scale=scale, held_bytes=held)
        except BaseException:
            self._budget.release(held)
            raise

    # Inference

    def _infer_loop(self, number: int) -> None:
        def pick(waiting: list[Region], seconds: list[float]) -> list[int] | float:
            return next_batch([region.key for region in waiting], seconds, self.settings.batch)

        while batch := self._regions.take(pick):
            batch = [region for region in batch if not region.work.failed]
            if batch:
                self._infer(number, batch)

    def _measure_tiles(self, lane: Lane, region: Region) -> None:
        """Once, on a part of an image as large as a call takes."""
        with self._lock:
            if not self._cut_approximately:
                return
            self._cut_approximately = False
        self.remark = measured_difference(lane.runner, region.array(), display(region.work.job.input.name))

    def _infer(self, number: int, batch: list[Region]) -> None:
        lane = batch[0].work.lanes[number]
        if self._cut_approximately and sum(map(len, batch[0].work.rows)) > 1:
            self._measure_tiles(lane, batch[0])
        self._on_call(len(batch))
        start = time.perf_counter()
        try:
            target = batch[0].work.room_for(batch[0]) if len(batch) == 1 else None
            results, redone = lane.upscale([region.array() for region in batch], batch[0].kept, target)
        except (EspanDeployError, MemoryError) as exc:
            if len(batch) == 1:
                self._abandon(batch[0].work, exc)
                return
            for region in batch:  # which of them it was
                self._infer(number, [region])
            return
        if lane.cut_approximately and not self.remark:
            self.remark = f"{begin_of_remark(lane.description)}, and images were cut because memory ran out"
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
                    self._complete.put(work)
                elif work.failed:
                    work.discard()  # what this band opened after that
            except (EspanDeployError, OSError, MemoryError, ValueError) as exc:
                self._abandon(work, exc)
            del work

    # Publishing

    def _publish_loop(self) -> None:
        while taken := self._complete.take():
            work = taken.pop()
            try:
                self._publish(work)
            except (EspanDeployError, OSError, MemoryError, ValueError) as exc:
                self._abandon(work, exc)
            del work

    def _publish(self, work: Work) -> None:
        report = work.report
        report.output_bytes = work.publish()
        work.fill_report()
        report.stage_ms["end_to_end"] = (time.perf_counter() - report.stage_ms["end_to_end"]) * 1e3
        report.status = "done"
        self._release(work)
        self._end(work.job, report)

    # Ends

    def _end(self, job: Job, report: FileReport, exc: BaseException | None = None) -> None:
        with self._lock:
            self.finished += 1
        self._on_end(job, report, exc)

    def _abandon(self, work: Work, exc: BaseException) -> None:
        work.discard()
        self._release(work)
        self._fail(work.job, work.report, exc)

    def _release(self, work: Work) -> None:
        with self._lock:
            held, work.held_bytes = work.held_bytes, 0
        self._budget.release(held)

    def _fail(self, job: Job, report: FileReport, exc: BaseException) -> None:
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
        self._end(job, report, exc)


def _pixels(region: Region) -> int:
    height, width = region.tile.shape
    return height * width


def _band_pixels(item: tuple[Work, int]) -> int:
    work, band = item
    return work.band_pixels(band)
