"""The contract every inference backend keeps. The base class checks, the backend does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.description import ModelDescription
from espan_deploy.errors import InferenceError, InputShapeError

Images = NDArray[Any]
"""(N, H, W, 3) RGB: uint8 in [0, 255], or float32 in [0, 1] whatever the network's own value range."""


@dataclass(frozen=True)
class EngineInfo:
    """What runs a model, for reports. details: whatever else changes its speed or its values."""

    backend: str
    version: str
    device: str
    precision: str
    threads: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One kernel of an engine at work.

    names: of the graph's nodes, or of their values, that it computes, as far as the engine tells; none for what the
    engine added. ms: milliseconds, the median of several runs. computes_in: what it multiplies, as "u8", "bf16" or
    "f32"; "" where the engine does not tell.
    """

    names: tuple[str, ...]
    kind: str
    ms: float
    computes_in: str = ""


class Runner(ABC):
    """A model opened on a device. Use as a context manager; not to be shared between threads.

    description: of the model. info: of the engine.
    """

    description: ModelDescription
    info: EngineInfo

    def infer(self, images: Images) -> Images:
        """Upscale a batch.

        images: (N, H, W, 3) RGB, C-contiguous, uint8 in [0, 255] or float32 in [0, 1]; not kept, not changed. A size
        the network does not take is padded as its description says, and the result cropped.
        Returns (N, scale*H, scale*W, 3) of the same type, owned by the caller: uint8 is clipped and rounded to
        nearest, float32 is neither clipped nor checked.
        Raises InputShapeError for another shape, type or a size the model does not take, InferenceError where
        the backend fails (its message says so if memory ran out).
        """
        images = self._checked(images)
        fitted = fit(images, self.description)
        parts = [self._whole(fitted[low:high]) for low, high in self._calls(len(fitted))]
        result = parts[0] if len(parts) == 1 else np.concatenate(parts)
        height, width = (side * self.description.scale for side in images.shape[1:3])
        return result if fitted is images else np.ascontiguousarray(result[:, :height, :width])

    def infer_into(self, images: Images, kept: tuple[slice, slice], out: Images) -> None:
        """Upscale a batch and put a part of the result where it belongs: a tile's without its halo into its image.

        images: as for :meth:`infer`. kept: rows and columns of the images whose results are wanted.
        out: (N, scale*h, scale*w, 3) of the images' type, h and w being the kept ones; may be a part of something
        larger, with contiguous rows. Raises as :meth:`infer`; what ``out`` holds is undefined then.
        """
        images = self._checked(images)
        height, width = ((part.stop - part.start) * self.description.scale for part in kept)
        if (
            out.shape != (len(images), height, width, 3)
            or out.dtype != images.dtype
            or not out[0, 0].flags.c_contiguous
        ):
            raise InputShapeError(f"{images.dtype} {images.shape} with {kept} kept does not go into {out.shape}")
        fitted = fit(images, self.description)
        for low, high in self._calls(len(fitted)):
            self._infer_into(fitted[low:high], kept, out[low:high])

    def _calls(self, count: int) -> list[tuple[int, int]]:
        """From which image to which each call goes."""
        most = self.description.max_batch or count
        return [(low, min(low + most, count)) for low in range(0, count, most)]

    def _checked(self, images: Images) -> Images:
        if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise InputShapeError(f"expected images of shape (N, H, W, 3) with no empty side, got {images.shape}")
        if images.dtype not in (np.uint8, np.float32):
            raise InputShapeError(f"expected uint8 or float32 images, got {images.dtype}")
        return np.ascontiguousarray(images)

    def _whole(self, images: Images) -> Images:
        result = self._infer(images)
        scale = self.description.scale
        expected = (images.shape[0], images.shape[1] * scale, images.shape[2] * scale, 3)
        if result.shape != expected:
            raise InferenceError(f"the model made {result.shape} of {images.shape}, expected {expected}")
        return result

    @abstractmethod
    def _infer(self, images: Images) -> Images:
        """Upscale a checked, C-contiguous batch."""

    def _infer_into(self, images: Images, kept: tuple[slice, slice], out: Images) -> None:
        """The same for a part; a backend that can spares itself the whole result."""
        rows, columns = scaled(kept, self.description.scale)
        out[...] = self._whole(images)[:, rows, columns]

    def prepare(self, shape: tuple[int, ...]) -> None:  # noqa: B027 - most backends have nothing to prepare
        """Do now what the first uint8 batch of this shape, (N, H, W, 3), which the network takes, would wait for.

        Raises as :meth:`infer`.
        """

    def profile(self, images: Images, runs: int) -> list[Step] | None:
        """Where the time of a batch goes, kernel by kernel, in the engine's order; None where it does not tell.

        images: as for :meth:`infer`, uint8. Measuring takes time itself, so the steps are no latency.
        """
        del images, runs
        return None

    def close(self) -> None:  # noqa: B027 - most backends hold nothing that must be freed by hand
        """Free what the runner holds. Calling it twice does no harm."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fit(images: Images, description: ModelDescription) -> Images:
    """The images themselves where the network takes their size, else continued to the next larger that it takes.

    images: (N, H, W, 3). Raises InputShapeError where a graph of a fixed size takes none as large.
    """
    height, width = images.shape[1:3]
    if description.fixed_size is not None:
        rows, columns = description.fixed_size
        if height > rows or width > columns:
            raise InputShapeError(f"the model takes images of {rows}x{columns}, got {height}x{width}")
    else:
        multiple, least = description.size_multiple, description.min_size
        rows, columns = (-(-max(side, least) // multiple) * multiple for side in (height, width))
    if (rows, columns) == (height, width):
        return images
    return np.pad(images, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)), mode=description.padding)


def scaled(kept: tuple[slice, slice], scale: int) -> tuple[slice, slice]:
    """Rows and columns of the result that those of the image become."""
    rows, columns = (slice(part.start * scale, part.stop * scale) for part in kept)
    return rows, columns
