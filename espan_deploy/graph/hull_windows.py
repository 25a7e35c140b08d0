"""Operators that read windows of their input: which rows those are. See :mod:`espan_deploy.graph.hulls`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.graph.hull import NOTHING, Hull
from espan_deploy.graph.sizes import Shape

if TYPE_CHECKING:
    from espan_deploy.graph.hulls import Reading

CUBIC_REACH = 2
"""Pixels to each side that a cubic interpolation reads."""


def padded(read: Reading) -> Hull | None:
    """Zeros depend on nothing; mirrored and repeated pixels on what they repeat."""
    hull, widths, axes = read.hulls[0], read.array(1), read.array(3)
    if hull is None or widths is None:
        return None
    rank = hull.low.ndim
    sides = [(0, 0)] * rank
    half = len(widths) // 2
    for i, axis in enumerate(range(rank) if axes is None else axes.tolist()):
        sides[int(axis)] = (int(widths[i]), int(widths[half + i]))
    lengths = zip(sides, hull.low.shape, strict=True)
    cut = tuple(slice(max(0, -before), length - max(0, -after)) for (before, after), length in lengths)
    sides = [(max(0, before), max(0, after)) for before, after in sides]
    mode = read.text("mode", "constant")
    low, high = (
        np.pad(part[cut], sides, constant_values=empty) if mode == "constant" else np.pad(part[cut], sides, mode=mode)  # type: ignore[call-overload]
        for part, empty in zip((hull.low, hull.high), NOTHING, strict=True)
    )
    return Hull(low, high)


def convolved(read: Reading) -> Hull | None:
    """A convolution: per group of channels, the taps whose weights are not all zero."""
    hull, weight = read.hulls[0], read.array(1)
    if hull is None or weight is None or weight.ndim != 4:
        return None
    groups, shape = read.number("group", 1), read.out_shape()
    grouped = _grouped(hull, groups)
    found = _over_window(read, grouped, weight.shape[2:], shape, used=np.abs(weight).max((0, 1)) > 0)
    return None if found is None else _ungrouped(found, groups, shape)


def pooled(read: Reading) -> Hull | None:
    """A pooling: every channel for itself."""
    hull, kernel = read.hulls[0], tuple(read.numbers("kernel_shape"))
    if hull is None or len(kernel) != 2:
        return None
    return _over_window(read, hull, kernel, read.out_shape(), used=np.ones(kernel, np.bool_))


def transposed(read: Reading) -> Hull | None:
    """A transposed convolution: each result joins the inputs that were spread over it."""
    hull, weight = read.hulls[0], read.array(1)
    if hull is None or weight is None or weight.ndim != 4 or read.text("auto_pad", "NOTSET") != "NOTSET":
        return None
    groups, shape = read.number("group", 1), read.out_shape()
    grouped = _grouped(hull, groups)
    strides, dilations = read.numbers("strides", (1, 1)), read.numbers("dilations", (1, 1))
    pads = read.numbers("pads", (0, 0, 0, 0))
    sides, kernel = grouped.low.shape[2:], weight.shape[2:]
    reached = [(sides[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(2)]
    spread = (*grouped.low.shape[:2], *(max(reached[i], shape[2 + i] + pads[i]) for i in range(2)))
    parts = []
    for part, empty, pick in zip((grouped.low, grouped.high), NOTHING, (np.minimum, np.maximum), strict=True):
        out = np.full(spread, empty, np.int16)
        for tap in itertools.product(*map(range, kernel)):
            view = out[_tap(tap, sides, strides, dilations)]
            pick(view, part, out=view)
        parts.append(out[:, :, pads[0] : pads[0] + shape[2], pads[1] : pads[1] + shape[3]])
    return _ungrouped(Hull(*parts), groups, shape)


def resized(read: Reading) -> Hull | None:
    """An interpolation, axis by axis."""
    hull, shape = read.hulls[0], read.out_shape()
    scales, mode = read.array(2), read.text("mode", "nearest")
    if hull is None or read.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    for axis, length in enumerate(shape):
        source = hull.low.shape[axis]
        stated = scales is not None and len(scales) == len(shape)
        scale = float(scales[axis]) if stated and scales is not None else length / source
        if length == source and scale == 1:
            continue
        parts: list[NDArray[Any]] = []
        taps = list(_taps(read, mode, source, length, scale))
        for part, pick in zip((hull.low, hull.high), (np.minimum, np.maximum), strict=True):
            joined = np.take(part, taps[0], axis)
            for tap in taps[1:]:
                joined = pick(joined, np.take(part, tap, axis))
            parts.append(joined)
        hull = Hull(*parts)
    return hull


def _taps(read: Reading, mode: str, source: int, length: int, scale: float) -> Iterator[NDArray[np.int64]]:
    """Of each place of the result, the places of the source that it reads: one array for each tap."""
    place = np.arange(length, dtype=np.float64)
    how = read.text("coordinate_transformation_mode", "half_pixel")
    half, step = 0.5, 1 / scale
    if how == "asymmetric":
        half = 0.0
    elif how == "align_corners":
        half, step = 0.0, (source - 1) / max(1, length - 1)
    at = (place + half) * step - half
    reach = {"nearest": 0, "linear": 1, "cubic": CUBIC_REACH}[mode]
    if read.number("antialias", 0) and scale < 1:
        reach = math.ceil(reach / scale)
    first = np.floor(at + 1e-6).astype(np.int64)
    # Where nearest rounds to is the mode's affair: both neighbours count.
    for offset in range(1 - max(1, reach), max(1, reach) + 1):
        yield np.clip(first + offset, 0, source - 1)


def _over_window(read: Reading, hull: Hull, kernel: Shape, shape: Shape, *, used: NDArray[np.bool_]) -> Hull | None:
    """Join what a sliding window reads; outside of the image there is nothing."""
    if read.text("auto_pad", "NOTSET") not in ("", "NOTSET", "VALID") or len(kernel) != 2:
        return None
    strides, dilations = read.numbers("strides", (1, 1)), read.numbers("dilations", (1, 1))
    pads = read.numbers("pads", (0, 0, 0, 0))
    out = (*hull.low.shape[:2], *shape[2:])
    needed = [(shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(2)]
    after = [max(0, needed[i] - hull.low.shape[2 + i] - pads[i]) for i in range(2)]
    sides = ((0, 0), (0, 0), (pads[0], after[0]), (pads[1], after[1]))
    parts = []
    for part, empty, pick in zip((hull.low, hull.high), NOTHING, (np.minimum, np.maximum), strict=True):
        wide = np.pad(part, sides, constant_values=empty)
        joined = np.full(out, empty, np.int16)
        for tap in zip(*np.nonzero(used), strict=True):
            pick(joined, wide[_tap(tap, out[2:], strides, dilations)], out=joined)
        parts.append(joined)
    return Hull(*parts)


def _tap(tap: Sequence[int], sides: Shape, strides: Sequence[int], dilations: Sequence[int]) -> tuple[slice, ...]:
    """What one tap of a kernel meets as the window slides over ``sides`` places."""
    starts = [int(place) * dilation for place, dilation in zip(tap, dilations, strict=True)]
    steps = zip(starts, sides, strides, strict=True)
    spans = (slice(start, start + (side - 1) * stride + 1, stride) for start, side, stride in steps)
    return (slice(None), slice(None), *spans)


def _grouped(hull: Hull, groups: int) -> Hull:
    """The channels of each group as one."""

    def split(part: NDArray[Any]) -> NDArray[Any]:
        batch, channels, height, width = part.shape
        return part.reshape(batch, groups, channels // groups, height, width)

    return hull.moved(split).joined((2,), keepdims=False)


def _ungrouped(hull: Hull, groups: int, shape: Shape) -> Hull:
    """Each group's channel for all that the group makes."""
    return hull.moved(lambda part: np.repeat(part, shape[1] // groups, 1) if groups > 1 else part)
