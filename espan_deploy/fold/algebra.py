"""The algebra of folding: convolutions as arrays, in float64. Nothing here knows of graphs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Pads = tuple[int, int, int, int]
"""Rows and columns of zeros on the top, left, bottom and right: ONNX's order."""


@dataclass(frozen=True)
class Convolution:
    """A stride-1 convolution with zero padding, as ONNX defines it: a cross-correlation.

    weight: (O, I / groups, KH, KW). dilation: distance of its taps in rows and columns.
    """

    weight: Array
    pads: Pads
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one output position, all channels."""
        return self.weight.size

    @property
    def is_identity(self) -> bool:
        """Whether it gives its input back, bit by bit."""
        out_channels, _, height, width = self.weight.shape
        if (height, width) != (1, 1) or self.pads != (0, 0, 0, 0):
            return False
        if self.groups == 1:
            return self.weight.shape[0] == self.weight.shape[1] and np.array_equal(
                self.weight[:, :, 0, 0], np.eye(out_channels)
            )
        return self.groups == out_channels and bool((self.weight == 1).all())

    @property
    def kernel(self) -> str:
        """``3x3 32->48``, with groups and dilation where there are any."""
        out_channels, in_per_group, height, width = self.weight.shape
        name = f"{height}x{width} {in_per_group * self.groups}->{out_channels}"
        if self.groups > 1:
            name += f" groups {self.groups}"
        if self.dilation != (1, 1):
            name += f" dilation {self.dilation[0]}x{self.dilation[1]}"
        return name


@dataclass(frozen=True)
class Term:
    """One summand of an affine map: a convolution over the concatenation of these sources (by number)."""

    sources: tuple[int, ...]
    convolution: Convolution


def summed(convolutions: Sequence[Convolution]) -> tuple[Term, ...]:
    """The sum of one convolution per source in as few as possible.

    Zero ones are dropped; dense ones of one kernel shape read the concatenation of their sources.
    """
    terms: list[Term] = []
    for source, convolution in enumerate(convolutions):
        if not convolution.weight.any():
            continue
        for index, term in enumerate(terms):
            if _fit_together(term.convolution, convolution):
                weight = np.concatenate([term.convolution.weight, convolution.weight], axis=1)
                joined = Convolution(weight, convolution.pads, convolution.dilation)
                terms[index] = Term((*term.sources, source), joined)
                break
        else:
            terms.append(Term((source,), convolution))
    return tuple(terms)


def _fit_together(a: Convolution, b: Convolution) -> bool:
    same_kernel = (a.weight.shape[2:], a.pads, a.dilation) == (b.weight.shape[2:], b.pads, b.dilation)
    return same_kernel and a.groups == b.groups == 1 and not (a.is_identity or b.is_identity)


def convolve(
    x: Array,
    weight: Array,
    *,
    pads: Pads = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    strides: tuple[int, int] = (1, 1),
) -> Array:
    """Cross-correlate x (N, I, H, W) with weight (O, I / groups, KH, KW) over zero padding."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    out_channels, in_per_group, kernel_height, kernel_width = weight.shape
    height = (x.shape[2] - (kernel_height - 1) * dilation[0] - 1) // strides[0] + 1
    width = (x.shape[3] - (kernel_width - 1) * dilation[1] - 1) // strides[1] + 1
    out_per_group = out_channels // groups
    if x.shape[0] * height * width == 0 or height < 1 or width < 1:
        return np.zeros((x.shape[0], out_channels, max(height, 0), max(width, 0)))
    if in_per_group == 1:
        return _convolve_channels(x, weight, (height, width), dilation, strides)
    # One matrix product gives what every pixel adds through every tap; shifting and adding those is the convolution.
    kernels = weight.reshape(groups, out_per_group, in_per_group, -1).transpose(0, 3, 1, 2)
    pixels = x.reshape(x.shape[0], groups, in_per_group, -1).transpose(1, 2, 0, 3).reshape(groups, in_per_group, -1)
    products = kernels.reshape(groups, -1, in_per_group) @ pixels
    products = products.reshape(groups, -1, out_per_group, x.shape[0], *x.shape[2:])
    out = np.zeros((groups, out_per_group, x.shape[0], height, width))
    for tap in range(kernel_height * kernel_width):
        row, column = tap // kernel_width * dilation[0], tap % kernel_width * dilation[1]
        rows = slice(row, row + (height - 1) * strides[0] + 1, strides[0])
        columns = slice(column, column + (width - 1) * strides[1] + 1, strides[1])
        out += products[:, tap, :, :, rows, columns]
    return np.ascontiguousarray(out.transpose(2, 0, 1, 3, 4).reshape(x.shape[0], out_channels, height, width))


def _convolve_channels(
    x: Array, weight: Array, size: tuple[int, int], dilation: tuple[int, int], strides: tuple[int, int]
) -> Array:
    """Every channel of padded x by itself: shifted and added, no array larger than the result."""
    if len(weight) > x.shape[1]:
        x = np.repeat(x, len(weight) // x.shape[1], axis=1)
    out = np.zeros((x.shape[0], len(weight), *size))
    for row, column in np.ndindex(*weight.shape[2:]):
        top, left = row * dilation[0], column * dilation[1]
        rows = slice(top, top + (size[0] - 1) * strides[0] + 1, strides[0])
        columns = slice(left, left + (size[1] - 1) * strides[1] + 1, strides[1])
        out += x[:, :, rows, columns] * weight[:, 0, row, column][:, None, None]
    return out


def convolution_from_taps(taps: Array, size_change: tuple[int, int]) -> Convolution:
    """The cheapest convolution with these taps.

    taps: (O, I, 2R+1, 2R+1); taps[:, :, R + i, R + j] weighs the input i rows below and j columns right of the output.
    size_change: output height and width less the input's.
    Rows and columns of zeros are cut off, equal distances between taps become dilation, independent blocks of
    channels become groups.
    """
    (top, bottom, row_step), (left, right, column_step) = (
        _extent(taps, axis, change) for axis, change in zip((2, 3), size_change, strict=True)
    )
    radius = taps.shape[2] // 2
    first_row, first_column = radius - top, radius - left
    last_row = radius + bottom - size_change[0]
    last_column = radius + right - size_change[1]
    weight = taps[:, :, first_row : last_row + 1 : row_step, first_column : last_column + 1 : column_step]
    groups = _groups(weight)
    return Convolution(
        np.ascontiguousarray(_block_diagonal(weight, groups)),
        (top, left, bottom, right),
        (row_step, column_step),
        groups,
    )


def _extent(taps: Array, axis: int, size_change: int) -> tuple[int, int, int]:
    """Padding before and after, and the distance of taps, along one axis."""
    radius = taps.shape[axis] // 2
    other = tuple(i for i in range(4) if i != axis)
    used = np.flatnonzero(taps.any(axis=other)) - radius
    first, last = (int(used[0]), int(used[-1])) if used.size else (0, 0)
    # Padding is never negative: a kernel that only looks to one side is widened with zeros to reach its output.
    first, last = min(first, 0), max(last, -size_change)
    offsets = {int(offset) - first for offset in used} | {last - first}
    step = math.gcd(*offsets) or 1
    return -first, last + size_change, step


def _groups(weight: Array) -> int:
    """The largest number of equal, independent blocks of channels."""
    out_channels, in_channels = weight.shape[:2]
    linked = weight.any(axis=(2, 3))
    for groups in range(math.gcd(out_channels, in_channels), 1, -1):
        if out_channels % groups or in_channels % groups:
            continue
        blocks = np.kron(np.eye(groups, dtype=bool), np.ones((out_channels // groups, in_channels // groups), bool))
        if not (linked & ~blocks).any():
            return groups
    return 1


def _block_diagonal(weight: Array, groups: int) -> Array:
    out_per_group, in_per_group = weight.shape[0] // groups, weight.shape[1] // groups
    return np.concatenate(
        [
            weight[g * out_per_group : (g + 1) * out_per_group, g * in_per_group : (g + 1) * in_per_group]
            for g in range(groups)
        ]
    )
