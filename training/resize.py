"""MATLAB's ``imresize(..., 'bicubic')`` with antialiasing, which made every test pair in super-resolution."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SUPPORT = 4.0
"""Width of the bicubic kernel in pixels of the coarser grid."""


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5."""
    a = np.abs(x)
    near = 1.5 * a**3 - 2.5 * a**2 + 1
    far = -0.5 * a**3 + 2.5 * a**2 - 4 * a + 2
    return np.where(a <= 1, near, np.where(a <= 2, far, 0.0))


@lru_cache(maxsize=32)
def resize_matrix(size: int, divisor: int) -> NDArray[np.float32]:
    """The (ceil(size / divisor), size) matrix which shrinks one axis; each row sums to one."""
    out = math.ceil(size / divisor)
    centre = (np.arange(out) + 0.5) * divisor - 0.5
    left = np.floor(centre - SUPPORT * divisor / 2).astype(int)
    index = left[:, None] + np.arange(int(SUPPORT * divisor) + 2)
    weight = cubic((centre[:, None] - index) / divisor)
    weight /= weight.sum(1, keepdims=True)
    mirrored = np.mod(index, 2 * size)
    mirrored = np.where(mirrored >= size, 2 * size - 1 - mirrored, mirrored)
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out)[:, None], mirrored), weight)
    return matrix.astype(np.float32)


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Clip to 0..255 and round half up, as MATLAB does."""
    rounded: NDArray[np.uint8] = np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)
    return rounded


def shrink(image: NDArray[np.uint8], divisor: int) -> NDArray[np.uint8]:
    """Shrink both axes of an (H, W, C) image by an integer. Rows first, rounded to uint8 between, as MATLAB does."""
    height, width, channels = image.shape
    rows = resize_matrix(height, divisor) @ image.reshape(height, -1).astype(np.float32)
    halfway = to_uint8(rows).reshape(-1, width, channels).astype(np.float32)
    return to_uint8(np.einsum("ow,hwc->hoc", resize_matrix(width, divisor), halfway, optimize=True))
