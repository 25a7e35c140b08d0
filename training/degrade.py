"""What happens to a picture before somebody enlarges it: blur, resampling, noise of the sensor, JPEG.

A crop is spoiled as a part of a larger window, so that a network sees block grids at every offset and no border that a
whole photograph would not have. Everything drawn comes from the generator given, so that a run stays repeatable.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]

MARGIN = 24
"""Low-resolution pixels around a crop, at most: 4:2:0 has blocks of 16, and the offset of their grid is to be any."""
KERNELS = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.LANCZOS,
)
"""What pictures are made smaller with, where it is not bicubic; antialiased, as Pillow does."""
SUBSAMPLINGS = {"4:4:4": 0, "4:2:0": 2}


@dataclass(frozen=True)
class Degradations:
    """How often, in parts of the crops, and how much. A range is drawn from evenly."""

    jpeg: float = 0.0
    quality: tuple[int, int] = (25, 95)
    twice: float = 0.0  # of those with JPEG, how many had it before, on another grid
    subsampled: float = 0.5  # of the JPEGs, how many are 4:2:0; the others 4:4:4
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.5, 2.0)  # high-resolution pixels
    noise: float = 0.0
    noise_sigma: tuple[float, float] = (0.5, 4.0)  # levels of 255
    kernel: float = 0.0  # shrunk by another kernel than bicubic


def spoiled(low: Pixels, degradations: Degradations, rng: np.random.Generator) -> Pixels:
    """Noise, then JPEG, of an (H, W, 3) picture at its low resolution. The same size and type."""
    if rng.random() < degradations.noise:
        noise = rng.standard_normal(low.shape, np.float32) * rng.uniform(*degradations.noise_sigma)
        low = np.clip(low + noise + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < degradations.jpeg:
        if rng.random() < degradations.twice:
            whole = low.copy()
            top, left = (int(v) for v in rng.integers(0, 8, 2))
            whole[top:, left:] = _drawn_jpeg(low[top:, left:], degradations, rng)
            low = whole
        low = _drawn_jpeg(low, degradations, rng)
    return low


def _drawn_jpeg(image: Pixels, degradations: Degradations, rng: np.random.Generator) -> Pixels:
    first, last = degradations.quality
    quality = int(rng.integers(first, last + 1))
    return jpeg(image, quality, "4:2:0" if rng.random() < degradations.subsampled else "4:4:4")


def jpeg(image: Pixels, quality: int, subsampling: str = "4:2:0") -> Pixels:
    """(H, W, 3) uint8 through libjpeg's baseline JPEG and back. quality: libjpeg's 1..100."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=SUBSAMPLINGS[subsampling])
    return np.array(Image.open(file))


def shrunk(high: Pixels, scale: int, degradations: Degradations, rng: np.random.Generator) -> Pixels | None:
    """Blur and another kernel than bicubic: (H, W, 3) to a ``scale``-th of it, or None where neither is drawn."""
    blurred = rng.random() < degradations.blur
    other = rng.random() < degradations.kernel
    if not blurred and not other:
        return None
    image = Image.fromarray(high)
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*degradations.blur_sigma)))
    kernel = KERNELS[int(rng.integers(len(KERNELS)))] if other else Image.Resampling.BICUBIC
    return np.array(image.resize((image.width // scale, image.height // scale), kernel))


@dataclass(frozen=True)
class Window:
    """A square of low-resolution pixels in its photograph, and the crop within it."""

    top: int
    left: int
    height: int
    width: int
    row: int
    column: int


def window_around(top: int, left: int, patch: int, size: tuple[int, int], rng: np.random.Generator) -> Window:
    """A window which begins up to MARGIN before the crop at (top, left) and ends up to MARGIN behind it."""
    before = [int(v) for v in rng.integers(8, MARGIN, 2)]
    first = [max(0, corner - part) for corner, part in zip((top, left), before, strict=True)]
    last = [min(length, corner + patch + MARGIN) for corner, length in zip((top, left), size, strict=True)]
    return Window(first[0], first[1], last[0] - first[0], last[1] - first[1], top - first[0], left - first[1])


def degraded_crop(
    high: Pixels,
    low: Pixels,
    *,
    corner: tuple[int, int],
    patch: int,
    degradations: Degradations,
    rng: np.random.Generator,
) -> Pixels:
    """The ``patch`` pixels square at ``corner`` (row, column) of ``low``, as they look after what is drawn.

    high, low: whole photographs, (H, W, 3) uint8; ``low`` is ``high`` made smaller by bicubic and a whole number.
    """
    scale = high.shape[0] // low.shape[0]
    window = window_around(*corner, patch, low.shape[:2], rng)
    rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
    fine = high[rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale]
    small = shrunk(np.ascontiguousarray(fine), scale, degradations, rng)
    if small is None:
        small = np.ascontiguousarray(low[rows, columns])
    small = spoiled(small, degradations, rng)
    return small[window.row : window.row + patch, window.column : window.column + patch]
