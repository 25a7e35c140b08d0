"""PSNR and SSIM as the field of super-resolution defines them.

Both images are uint8, cut to their common size, with ``scale`` pixels cut off every side. PSNR is of 255, over all
channels of RGB, or of the luma Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255, not rounded (ITU-R BT.601, as MATLAB's
rgb2ycbcr). SSIM is of Y, with the 11x11 Gaussian window of sigma 1.5, where it lies wholly inside (Wang et al. 2004).

Written out here: no library at hand gives all three of these choices, and each is some lines of numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espan_deploy.errors import InputError

Image = NDArray[np.uint8]
"""(H, W, 3) RGB."""

Plane = NDArray[np.float64]

LUMA = np.array([65.481, 128.553, 24.966]) / 255
LUMA_OFFSET = 16.0

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class Quality:
    """Of one image. A PSNR of equal images is infinite."""

    psnr_rgb_db: float
    psnr_y_db: float
    ssim_y: float


def quality(result: Image, truth: Image, border: int) -> Quality:
    """Compare an upscaled image with the truth. Raises InputError where nothing is left inside the border."""
    rows, columns = (min(a, b) for a, b in zip(result.shape[:2], truth.shape[:2], strict=True))
    if min(rows, columns) < 2 * border + WINDOW:
        raise InputError(f"{rows}x{columns} is too small to compare with {border} pixels cut off every side")
    inner = (slice(border, rows - border), slice(border, columns - border))
    ours, theirs = result[inner].astype(np.float64), truth[inner].astype(np.float64)
    ours_y, theirs_y = luma(ours), luma(theirs)
    return Quality(psnr(ours, theirs), psnr(ours_y, theirs_y), ssim(ours_y, theirs_y))


def luma(rgb: Plane) -> Plane:
    """Y of (..., 3) RGB in [0, 255]: 16 to 235."""
    return rgb @ LUMA + LUMA_OFFSET


def psnr(ours: Plane, theirs: Plane) -> float:
    """In dB, of a peak of 255."""
    error = float(np.square(ours - theirs).mean())
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def ssim(ours: Plane, theirs: Plane) -> float:
    """Mean structural similarity of two planes in [0, 255]."""
    mean_a, mean_b = _blur(ours), _blur(theirs)
    var_a, var_b = _blur(ours * ours) - mean_a**2, _blur(theirs * theirs) - mean_b**2
    covariance = _blur(ours * theirs) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (var_a + var_b + C2)
    return float((luminance * structure).mean())


def _blur(plane: Plane) -> Plane:
    """The Gaussian window at every place where it lies inside."""
    kernel = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        length = plane.shape[axis] - WINDOW + 1
        parts = [kernel[i] * plane.take(range(i, i + length), axis) for i in range(WINDOW)]
        plane = np.sum(parts, axis=0)
    return plane
