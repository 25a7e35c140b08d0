"""Engine calls that survive: out of memory halves the tiles, values that are not finite are redone in FP32."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from espan_deploy.backends.base import Runner
from espan_deploy.backends.finite import NonFiniteError
from espan_deploy.description import ModelDescription
from espan_deploy.errors import InferenceError, InputError
from espan_deploy.pipeline.approximate import approximate_halo
from espan_deploy.pipeline.picture import Pixels
from espan_deploy.pipeline.tiles import plan_tiles

MEMORY_WORDS = ("memory", "alloc", "oom")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an engine's failure reads like a lack of memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in MEMORY_WORDS)


class Fallback:
    """The FP32 runner that redoes what another precision could not, opened when first needed and shared."""

    def __init__(self, open_runner: Callable[[], Runner] | None) -> None:
        self._open = open_runner
        self._runner: Runner | None = None
        self._lock = threading.Lock()

    def infer(self, image: Pixels) -> Pixels:
        """One image, (H, W, 3). Raises NonFiniteError where FP32 is no better, or is what ran before."""
        if self._open is None:
            raise NonFiniteError([0])
        with self._lock:
            if self._runner is None:
                self._runner = self._open()
            return np.asarray(self._runner.infer(image[None])[0])

    def close(self) -> None:
        """Close the runner, if it was ever opened."""
        if self._runner is not None:
            self._runner.close()


class Lane:
    """One runner and what to do when it fails. For one thread.

    cut_approximately: whether memory ran out and an image was cut that the network sees the whole of.
    """

    def __init__(self, runner: Runner, fallback: Fallback) -> None:
        self.runner, self.fallback = runner, fallback
        self.cut_approximately = False
        self.description: ModelDescription = runner.description

    def upscale(
        self, images: list[Pixels], kept: tuple[slice, slice], target: Pixels | None
    ) -> tuple[list[Pixels | None], list[bool]]:
        """Images of one shape, each (H, W, 3), and which were redone in FP32. The results are the caller's.

        target: where the kept rows and columns of a single image's result may be put at once; if they were, the
        result is None. Raises InferenceError for a single image only: the caller retries a failed batch one by one.
        """
        batch = images[0][None] if len(images) == 1 else np.stack(images)
        redone = [False] * len(images)
        try:
            if target is not None:
                self.runner.infer_into(batch, kept, target[None])
                return [None], redone
            results = list(self.runner.infer(batch))
        except NonFiniteError:
            results = []
            for index, image in enumerate(batch):
                result, redone[index] = self._alone(image)
                results.append(result)
        except (InferenceError, MemoryError) as exc:
            if not ran_out_of_memory(exc):
                raise
            results = [self._halved(image, exc) for image in batch]
        return list(results), redone

    def _alone(self, image: Pixels) -> tuple[Pixels, bool]:
        try:
            return np.asarray(self.runner.infer(image[None])[0]), False
        except NonFiniteError:
            return self.fallback.infer(image), True

    def _halved(self, image: Pixels, reason: Exception) -> Pixels:
        """The same in tiles half as long on the longer side, and so on down; as exact as the network's tiles are."""
        height, width = image.shape[:2]
        if self.description.fixed_size is not None:
            raise InferenceError(f"not enough memory for {height}x{width}, the only size of this model: {reason}")
        halo, multiple = self.description.halo, self.description.tile_step
        if halo is None:
            halo = approximate_halo((max(height, width) // 2,) * 2, self.description)
            self.cut_approximately = True
        half = -(-(max(height, width) // 2 + halo) // multiple) * multiple
        limits = (half, width) if height >= width else (height, half)
        try:
            rows = plan_tiles(height, width, limits, halo, multiple)
        except InputError:
            raise InferenceError(f"not enough memory even for {height}x{width}: {reason}") from reason
        if len(rows) == 1 and len(rows[0]) == 1:
            raise InferenceError(f"not enough memory even for {height}x{width}: {reason}") from reason
        scale = self.description.scale
        result = np.empty((height * scale, width * scale, 3), image.dtype)
        for tile in (tile for row in rows for tile in row):
            y, x = tile.rows, tile.columns
            part = np.ascontiguousarray(image[y.low : y.high, x.low : x.high])
            try:
                out, _ = self._alone(part)
            except (InferenceError, MemoryError) as exc:
                if isinstance(exc, NonFiniteError) or not ran_out_of_memory(exc):
                    raise
                out = self._halved(part, exc)
            result[y.start * scale : y.stop * scale, x.start * scale : x.stop * scale] = out[
                (y.start - y.low) * scale : (y.stop - y.low) * scale,
                (x.start - x.low) * scale : (x.stop - x.low) * scale,
            ]
        return result
