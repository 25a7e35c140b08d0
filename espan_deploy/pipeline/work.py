"""One image on its way through the stages: its tiles, the bands they fill, and the file they end in."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from espan_deploy.pipeline.encode import EncodeSettings, Sink, open_sink
from espan_deploy.pipeline.jobs import HIDDEN_PREFIX, Job
from espan_deploy.pipeline.manifest import PART_SUFFIX, sha256_of
from espan_deploy.pipeline.picture import Picture, Pixels, to_file_pixels, upscaled_alpha
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.tiles import Tile


@dataclass
class Band:
    """Full-width rows of the result, filled by tiles."""

    pixels: Pixels | None
    missing: int


@dataclass(frozen=True)
class Region:
    """A tile of an image: what the engine gets."""

    work: Work
    band: int
    tile: Tile

    @property
    def key(self) -> tuple[int, int, int]:
        """Height, width and depth: regions of one key can share a batch."""
        height, width = self.tile.shape
        return height, width, self.work.picture.depth

    def array(self) -> Pixels:
        """(h, w, 3), C-contiguous; a view where the tile is the whole image."""
        rows, columns = self.tile.rows, self.tile.columns
        part = self.work.picture.color[rows.low : rows.high, columns.low : columns.high]
        return np.ascontiguousarray(part) if part.ndim == 3 else part[..., None].repeat(3, axis=2)


class Work:
    """A decoded image, until its file has its name or it failed.

    Its methods may be called from any thread; ``place`` and ``encode`` do their heavy work outside of the lock.
    """

    def __init__(
        self,
        job: Job,
        picture: Picture,
        *,
        input_sha256: str,
        rows: list[list[Tile]],
        scale: int,
        target: Path,
        settings: EncodeSettings,
    ) -> None:
        self.job, self.picture, self.input_sha256 = job, picture, input_sha256
        self.rows, self.scale, self.target = rows, scale, target
        self.settings = settings
        self.deep = picture.depth == 16 and job.format.deep
        self.infer_seconds = self.encode_seconds = 0.0
        self.redone_fp32 = 0
        self.failed = False
        self._lock = threading.Lock()
        self._bands: dict[int, Band] = {}
        self._prepared: dict[int, Any] = {}
        self._next = 0
        self._file: BinaryIO | None = None
        self._part: Path | None = None
        self._sink: Sink | None = None

    @property
    def regions(self) -> Iterator[Region]:
        """All tiles, band after band."""
        for index, row in enumerate(self.rows):
            for tile in row:
                yield Region(self, index, tile)

    def fill(self, report: FileReport) -> None:
        """Write what is known into the file's report."""
        report.tiles = sum(len(row) for row in self.rows)
        report.redone_fp32 = self.redone_fp32
        report.notes = list(self.picture.notes)
        report.stage_ms |= {"infer": self.infer_seconds * 1e3, "encode": self.encode_seconds * 1e3}

    def place(self, region: Region, result: Pixels, seconds: float) -> bool:
        """Put a region's result, (scale*h, scale*w, 3), in its band; whether the band is complete.

        result may be kept.
        """
        tile, scale = region.tile, self.scale
        top = (tile.rows.start - tile.rows.low) * scale
        left = (tile.columns.start - tile.columns.low) * scale
        height = (tile.rows.stop - tile.rows.start) * scale
        width = (tile.columns.stop - tile.columns.start) * scale
        kept = result[top : top + height, left : left + width]
        row = self.rows[region.band]
        with self._lock:
            self.infer_seconds += seconds
            band = self._bands.setdefault(region.band, Band(None, len(row)))
            if band.pixels is None:
                full = self.picture.width * scale
                band.pixels = kept if len(row) == 1 else np.empty((height, full, 3), result.dtype)
        if len(row) > 1:
            start = tile.columns.start * scale
            band.pixels[:, start : start + width] = kept
        with self._lock:
            band.missing -= 1
            return band.missing == 0

    def encode(self, index: int) -> bool:
        """Encode a complete band, and write those whose turn it is; whether the file's contents are complete."""
        start = time.perf_counter()
        with self._lock:
            band = self._bands.pop(index)
            if self._sink is None:
                self._open()
            sink = self._sink
        assert sink is not None
        color, alpha = band.pixels, self.picture.alpha
        del band
        assert color is not None
        if alpha is not None:
            rows = self.rows[index][0].rows
            alpha = upscaled_alpha(alpha, self.scale, rows.start, rows.stop)
        if self.picture.depth == 16 and not self.deep:
            color = _to_bytes(color)
            alpha = None if alpha is None else _to_bytes(alpha)
        pixels = to_file_pixels(color, alpha, self.picture)
        del color, alpha
        prepared = sink.prepare(pixels)
        del pixels
        with self._lock:
            self._prepared[index] = prepared
            while self._next in self._prepared:
                last = self._next == len(self.rows) - 1
                sink.commit(self._prepared.pop(self._next), last=last)
                self._next += 1
            complete = self._next == len(self.rows)
            if complete:
                sink.finish()
            self.encode_seconds += time.perf_counter() - start
            return complete

    def _open(self) -> None:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(PART_SUFFIX, f"{HIDDEN_PREFIX}-", self.target.parent)
        self._part = Path(name)
        self._file = cast(BinaryIO, os.fdopen(descriptor, "w+b"))
        self._sink = open_sink(self._file, self.job.format, self.settings, self.picture, self.scale, deep=self.deep)

    def sync(self) -> tuple[str, int]:
        """Put the complete contents on disk, still under their temporary name: their SHA-256 and size."""
        assert self._file is not None
        assert self._part is not None
        start = time.perf_counter()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        digest, size = sha256_of(self._part), self._part.stat().st_size
        # mkstemp makes files for their owner only; a result is as readable as any other new file.
        self._part.chmod(0o666 & ~_umask())
        self.encode_seconds += time.perf_counter() - start
        return digest, size

    def publish(self) -> None:
        """Give the file its name."""
        assert self._part is not None
        self._part.replace(self.target)
        self._part = None

    def discard(self) -> None:
        """Remove what was written so far. Calling it twice does no harm."""
        with self._lock:
            self.failed = True
            self._bands.clear()
            self._prepared.clear()
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
            if self._part is not None:
                with contextlib.suppress(OSError):
                    self._part.unlink()
                self._part = None


def _to_bytes(values: Pixels) -> Pixels:
    levels: Pixels = np.rint(values.clip(0, 1) * np.float32(255)).astype(np.uint8)
    return levels


@cache
def _umask() -> int:
    """The process's umask; it can only be read by setting it, so once."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
