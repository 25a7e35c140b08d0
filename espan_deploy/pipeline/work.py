"""One image on its way through the stages: its tiles, the bands they fill, and the output they end in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espan_deploy.backends.base import scaled
from espan_deploy.pipeline.infer import Lane
from espan_deploy.pipeline.jobs import Job, Sink
from espan_deploy.pipeline.picture import Picture, Pixels, upscaled_alpha
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.tiles import Tile, kept_height


@dataclass
class Band:
    """Full-width rows of the result, filled by tiles.

    canvas: the memory that pixels are a part of, where tiles share it.
    """

    missing: int
    pixels: Pixels | None = None
    canvas: Pixels | None = None


@dataclass(frozen=True)
class Region:
    """A tile of an image: what the engine gets."""

    work: Work
    band: int
    tile: Tile

    @property
    def key(self) -> tuple[int, int, int, int]:
        """Height, width, depth and which model: regions of one key can share a batch."""
        height, width = self.tile.shape
        return height, width, self.work.picture.depth, id(self.work.lanes)

    def array(self) -> Pixels:
        """(h, w, 3), C-contiguous; a view where the tile is the whole image."""
        rows, columns = self.tile.rows, self.tile.columns
        part = self.work.picture.color[rows.low : rows.high, columns.low : columns.high]
        return np.ascontiguousarray(part) if part.ndim == 3 else part[..., None].repeat(3, axis=2)

    @property
    def kept(self) -> tuple[slice, slice]:
        """Rows and columns of the array that are no halo."""
        rows, columns = self.tile.rows, self.tile.columns
        return (
            slice(rows.start - rows.low, rows.stop - rows.low),
            slice(columns.start - columns.low, columns.stop - columns.low),
        )


class Work:
    """A decoded image, until its result is delivered or it failed.

    lanes: of its model, one for each inference thread. held_bytes: of the memory in flight that it counts for. Its
    methods may be called from any thread.
    """

    def __init__(
        self,
        job: Job,
        report: FileReport,
        picture: Picture,
        *,
        lanes: Sequence[Lane],
        rows: list[list[Tile]],
        scale: int,
        held_bytes: int,
    ) -> None:
        self.job, self.report, self.picture, self.lanes = job, report, picture, lanes
        self.rows, self.scale, self.held_bytes = rows, scale, held_bytes
        self.infer_seconds = self.encode_seconds = self.publish_seconds = 0.0
        self.redone_fp32 = 0
        self.failed = False
        self._lock = threading.Lock()  # held for moments: inference threads wait for it
        self._bands: dict[int, Band] = {}
        self._begun = 0
        self._spare: list[Pixels] = []
        self._writing = threading.Lock()  # held while writing; taken before the other one
        self._prepared: dict[int, tuple[Iterable[Any], Pixels | None]] = {}
        self._next = 0
        self._sink: Sink | None = None

    @property
    def regions(self) -> Iterator[Region]:
        """All tiles, band after band."""
        for index, row in enumerate(self.rows):
            for tile in row:
                yield Region(self, index, tile)

    def fill_report(self) -> None:
        """Write what is known into the report."""
        report = self.report
        report.tiles = sum(len(row) for row in self.rows)
        report.redone_fp32 = self.redone_fp32
        report.notes = list(self.picture.notes)
        report.stage_ms |= {
            "infer": self.infer_seconds * 1e3,
            "encode": self.encode_seconds * 1e3,
            "publish": self.publish_seconds * 1e3,
        }

    def room_for(self, region: Region) -> Pixels | None:
        """Where a tile's kept result belongs, (h, w, 3) of its band; None where it is the whole band by itself."""
        row, columns = self.rows[region.band], region.tile.columns
        if len(row) == 1:
            return None
        with self._lock:
            band = self._band(region.band)
            if band.canvas is None:
                shape = (max(map(kept_height, self.rows)) * self.scale, self.picture.width * self.scale, 3)
                band.canvas = self._spare.pop() if self._spare else np.empty(shape, self.picture.color.dtype)
                band.pixels = band.canvas[: kept_height(row) * self.scale]
        assert band.pixels is not None
        return band.pixels[:, columns.start * self.scale : columns.stop * self.scale]

    def band_pixels(self, index: int) -> int:
        """Of the picture, that a band is made of."""
        return kept_height(self.rows[index]) * self.picture.width

    def _band(self, index: int) -> Band:
        if index not in self._bands:
            self._bands[index] = Band(len(self.rows[index]))
            self._begun += 1
        return self._bands[index]

    def place(self, region: Region, result: Pixels | None, seconds: float) -> bool:
        """Take a region's result, (scale*h, scale*w, 3) halo included; whether its band is complete.

        result: may be kept; None where it is in its target already.
        """
        if result is not None:
            result = result[scaled(region.kept, self.scale)]
            target = self.room_for(region)
            if target is not None:
                target[...] = result
        with self._lock:
            self.infer_seconds += seconds
            band = self._band(region.band)
            if band.canvas is None:
                band.pixels = result
            band.missing -= 1
            return band.missing == 0

    def encode(self, index: int) -> bool:
        """Encode a complete band, and write those whose turn it is; whether the result is complete."""
        start = time.perf_counter()
        with self._lock:
            band = self._bands.pop(index, None)
        if band is None:
            return False  # discarded meanwhile
        sink = self._sink or self._open()
        color, alpha, canvas = band.pixels, self.picture.alpha, band.canvas
        del band
        assert color is not None
        if alpha is not None:
            rows = self.rows[index][0].rows
            alpha = upscaled_alpha(alpha, self.scale, rows.start, rows.stop)
        parts = sink.prepare(color, alpha)
        del color, alpha
        if index != self._next:
            parts = list(parts)  # compressed now, while others are being written
        with self._writing:
            self._prepared[index] = (parts, canvas)
            del parts, canvas
            while self._next in self._prepared:
                parts, canvas = self._prepared.pop(self._next)
                for part in parts:
                    sink.commit(part)
                self._next += 1
                del parts
                if canvas is not None:
                    self._recycle(canvas)
                del canvas
            complete = self._next == len(self.rows)
            if complete:
                sink.finish()
            else:
                self.job.output.settle()
            self.encode_seconds += time.perf_counter() - start
            return complete

    def _recycle(self, canvas: Pixels) -> None:
        """Memory for a band to come: new memory costs as much time as filling it does."""
        with self._lock:
            if self._begun < len(self.rows):
                self._spare.append(canvas)
            else:
                self._spare.clear()

    def _open(self) -> Sink:
        with self._writing:
            if self._sink is None:
                self._sink = self.job.output.open(self.picture, self.scale)
            return self._sink

    def publish(self) -> int:
        """Deliver the complete result; its size in bytes."""
        start = time.perf_counter()
        size = self.job.output.publish()
        self.publish_seconds += time.perf_counter() - start
        return size

    def discard(self) -> None:
        """Remove what was written so far. Calling it twice does no harm."""
        with self._writing:
            with self._lock:
                self.failed = True
                self._bands.clear()
                self._spare.clear()
            self._prepared.clear()
            self.job.output.discard()
