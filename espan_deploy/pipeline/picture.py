"""A decoded image, and what of it must survive: depth, grey, alpha, profile, resolution, EXIF."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]


@dataclass
class Picture:
    """Pixels ready for the network, and the rest of the file.

    color: (H, W, 3) RGB, or (H, W) where the image is grey; uint8, or float32 in [0, 1] where depth is 16.
    alpha: (H, W) of the same type, or None; straight, not premultiplied. Colour under full transparency is filled
        from its surroundings, so that it cannot bleed.
    format: Pillow's name of the file's format. dpi: as in the file.
    exif: the raw EXIF block with its orientation already applied and reset, or b"".
    notes: what could not be kept.
    """

    color: Pixels
    alpha: Pixels | None
    depth: int
    format: str
    icc: bytes = b""
    exif: bytes = b""
    dpi: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def grey(self) -> bool:
        """Whether there is one channel of colour."""
        return self.color.ndim == 2

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.color.shape[0])

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.color.shape[1])

    @property
    def channels(self) -> int:
        """Of the file that comes out: 1, 2, 3 or 4."""
        return (1 if self.grey else 3) + (self.alpha is not None)


ALPHA_MARGIN = 4
"""Rows beyond a band that its mask's bicubic kernel may see: it reaches two."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R 601, as Pillow and everybody else turn RGB into grey."""


def to_file_pixels(color: Pixels, alpha: Pixels | None, picture: Picture) -> Pixels:
    """Network output as the file's own channels and depth.

    color: (h, w, 3), uint8 or float32. alpha: (h, w) of the same type, or None.
    Returns (h, w) or (h, w, C), uint8 or uint16; without a copy where nothing has to change.
    """
    pixels = to_channels(color, alpha, picture)
    return pixels if color.dtype == np.uint8 else to_levels(pixels, np.uint16)


def to_channels(color: Pixels, alpha: Pixels | None, picture: Picture) -> Pixels:
    """As :func:`to_file_pixels`, but float32 stays what it is."""
    color = _to_grey(color) if picture.grey else color
    return color if alpha is None else np.dstack([color, alpha])


def to_levels(values: Pixels, dtype: type[np.uint8] | type[np.uint16]) -> Pixels:
    """float32 in [0, 1], and what overshoots it, as integers over their type's whole range."""
    levels: Pixels = np.rint(values.clip(0, 1) * np.float32(np.iinfo(dtype).max)).astype(dtype)
    return levels


def upscaled_alpha(alpha: Pixels, scale: int, start: int, stop: int) -> Pixels:
    """Rows [start, stop) of a (H, W) mask at ``scale`` times its size, of the same type, as of the whole mask.

    Bicubic: networks are trained on photographs, and a mask's hard edges make them invent patterns.
    """
    low, high = max(0, start - ALPHA_MARGIN), min(len(alpha), stop + ALPHA_MARGIN)
    part = Image.fromarray(np.ascontiguousarray(alpha[low:high]))
    large = np.asarray(part.resize((part.width * scale, part.height * scale), Image.Resampling.BICUBIC))
    return large[(start - low) * scale : (stop - low) * scale]


def _to_grey(color: Pixels) -> Pixels:
    grey: Pixels = color.astype(np.float32, copy=False) @ LUMA
    return np.rint(grey).astype(np.uint8) if color.dtype == np.uint8 else grey


def fill_transparent(color: Pixels, alpha: Pixels) -> Pixels:
    """A copy whose colour under zero alpha comes from the nearest visible surroundings (pull and push)."""
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return color
    planes = color.astype(np.float32)
    planes = planes if planes.ndim == 3 else planes[..., None]
    filled = _pull_push(planes, (~hidden).astype(np.float32))
    result = np.where(hidden[..., None], filled, planes)
    if color.dtype == np.uint8:
        result = np.rint(result)
    return np.ascontiguousarray(result.reshape(color.shape).astype(color.dtype))


def _pull_push(planes: Pixels, weight: Pixels) -> Pixels:
    """Weighted averages at ever coarser levels, spread back where a finer level knows nothing."""
    height, width = weight.shape
    if height == 1 and width == 1:
        return planes
    padded = np.pad(planes * weight[..., None], ((0, height % 2), (0, width % 2), (0, 0)))
    weights = np.pad(weight, ((0, height % 2), (0, width % 2)))
    sums = padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2]
    totals = weights[::2, ::2] + weights[1::2, ::2] + weights[::2, 1::2] + weights[1::2, 1::2]
    known = (totals > 0).astype(np.float32)
    coarse = _pull_push(sums / np.maximum(totals, 1)[..., None], known)
    spread = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(weight[..., None] > 0, planes, spread)
