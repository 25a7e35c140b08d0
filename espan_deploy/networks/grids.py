"""Grids whose size is computed from the image's: adaptive pooling, windows, and the way back to the whole image.

PyTorch's own ``adaptive_max_pool2d`` and ``interpolate`` to a computed size do not survive the export at every size.
These give the same values, from operators that every engine has and from positions in whole numbers, which nothing
rounds. A size is taken only through ``x.shape``, so that it stays open in the exported graph.

Every ``axis`` is 2 (height) or 3 (width) of an image (N, C, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def adaptive_max_pool(x: Tensor, divisor: int) -> Tensor:
    """The largest value in each cell of a grid of H // divisor by W // divisor, as ``F.adaptive_max_pool2d`` has it.

    H and W must be at least ``divisor``. Cells overlap where the grid does not divide the image.
    """
    return _max_of_cells(_max_of_cells(x, 2, divisor), 3, divisor)


def adaptive_avg_pool(x: Tensor, divisor: int) -> Tensor:
    """The mean of each cell of the grid of :func:`adaptive_max_pool`, as ``F.adaptive_avg_pool2d`` has it."""
    return _mean_of_cells(_mean_of_cells(x, 2, divisor), 3, divisor)


def resize_nearest(x: Tensor, height: int, width: int) -> Tensor:
    """The image enlarged to height x width, each pixel the one at floor(position * old size / new size).

    ``F.interpolate`` computes that position in float32 instead. Where the grid is the image over 2, 4 or 8 the two
    agree up to 2200 pixels; over 5 or 7, one size in fifty has a row or two that float32 takes from the cell before.
    """
    for axis, size in ((2, height), (3, width)):
        x = x.index_select(axis, torch.arange(size, device=x.device) * x.shape[axis] // size)
    return x


def windows(x: Tensor, axis: int, starts: Tensor, length: int) -> Tensor:
    """The stretches ``starts[i] .. starts[i] + length - 1`` of one axis, as two axes in its place: (which, where)."""
    picked = x.index_select(axis, (starts[:, None] + torch.arange(length, device=x.device)).flatten())
    shape = [*x.shape]
    shape[axis : axis + 1] = [starts.shape[0], length]
    return picked.view(shape)


def _max_of_cells(x: Tensor, axis: int, divisor: int) -> Tensor:
    """A cell is between ``divisor`` and 2 * divisor - 1 long: two stretches of ``divisor`` pixels cover it."""
    first, last, _ = _cells(x, axis, divisor)
    stretches = F.max_pool2d(x, (divisor, 1) if axis == 2 else (1, divisor), stride=1)
    return torch.maximum(stretches.index_select(axis, first), stretches.index_select(axis, last - (divisor - 1)))


def _mean_of_cells(x: Tensor, axis: int, divisor: int) -> Tensor:
    first, last, longest = _cells(x, axis, divisor)
    position = first[:, None] + torch.arange(longest, device=x.device)
    inside = position <= last[:, None]
    weight = inside / (last - first + 1)[:, None]
    shape = [*x.shape]
    shape[axis : axis + 1] = [first.shape[0], longest]
    cells = x.index_select(axis, torch.minimum(position, last[:, None]).flatten()).view(shape)
    return (cells * (weight[:, :, None] if axis == 2 else weight)).sum(axis + 1)


def _cells(x: Tensor, axis: int, divisor: int) -> tuple[Tensor, Tensor, int]:
    """The first and the last pixel of each cell along an axis, and the most that one can hold."""
    size = x.shape[axis]
    count = size // divisor
    number = torch.arange(count, device=x.device)
    return number * size // count, ((number + 1) * size - 1) // count, 2 * divisor - 1
