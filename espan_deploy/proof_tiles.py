"""Whether what the graph says of tiles holds: parts of images against the whole, and pixels that are changed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from espan_deploy.description import ModelDescription
from espan_deploy.facts import Forward, Planes, Takes, soft_noise
from espan_deploy.proof import PARITY_TOLERANCE

TILE_TOLERANCE = 1e-5
"""Largest difference between a tile and the whole, relative to the largest value: other sizes take other kernels."""

SEED = 7

NARROW = 20
"""The other side of the strips that are cut."""

LARGER_STEPS = (1, 2, 4, 8, 16, 32, 64, 3, 5, 7, 12, 24, 48)
"""Tried where tiles that start at the multiple known are not exact."""

STARTS = (1, 3)
"""Tiles start at the halo's end and so many steps further: near the edge, and away from it."""

EXTRA = (9, 22)
"""Pixels behind a tile's halo: an odd and an even size."""


FIXED_STEPS = 3
"""Where a model takes one size, its tiles are compared with its network on an image so many tile steps larger."""

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class _Strip:
    """An image along one axis, and the tile [start, end) of it with the part [kept, kept_end) to compare."""

    axis: int
    side: int
    start: int
    end: int
    kept: int
    kept_end: int


def with_proven_tiles(
    description: ModelDescription, model: Forward, network: Forward, takes: Takes
) -> ModelDescription:
    """The description itself where tiles proved exact, or one whose tiles start at larger steps where these do.

    Else it has no halo, and says what was measured. A network that pads to a multiple inside does so at the edge of the
    image: a tile there must start where as much is padded.
    model: in ONNX Runtime, (N, 3, H, W) in the network's own range. network: itself, which may take larger images than
    a model of one size.
    """
    if description.halo is None:
        return description
    if takes.fixed is not None:
        return _with_proven_fixed_tiles(description, model, network, takes.fixed)
    steps = dict.fromkeys(math.lcm(description.tile_multiple, larger) for larger in LARGER_STEPS)
    worst = np.inf
    for step in steps:
        described = replace(description, tile_multiple=step)
        found = max(_tile_difference(strip, described, model, takes) for strip in _strips(described, takes))
        if found <= TILE_TOLERANCE:
            description = described
            break
        worst = min(worst, found)
    else:
        return replace(description, halo=None, halo_reason=f"a tile differs from the whole by {worst:.0e}")
    beyond = _seen_beyond(description, model, takes)
    if beyond:
        return replace(description, halo=None, halo_reason=f"a pixel {beyond} beyond its halo changes a result")
    return description


def _with_proven_fixed_tiles(
    description: ModelDescription, model: Forward, network: Forward, fixed: tuple[int, int]
) -> ModelDescription:
    """The description itself where tiles of the only size it takes are what the network makes of a larger image."""
    halo, scale, further = description.halo or 0, description.scale, FIXED_STEPS * description.tile_step
    worst = 0.0
    for axis in (2, 3):
        shape = [1, 3, *fixed]
        shape[axis] += further
        side = shape[axis]
        image: Planes = soft_noise(np.random.default_rng(SEED), tuple(shape)) * np.float32(description.value_range)
        try:
            whole = network(image)
        except Exception as exc:
            told = "its network takes no larger image to compare tiles with"
            return replace(description, halo=None, halo_reason=f"{told} ({type(exc.__cause__ or exc).__name__})")
        for start, kept, kept_end in ((0, 0, side - further - halo), (further, further + halo, side)):
            part = model(np.ascontiguousarray(_cut(image, axis, start, start + fixed[axis - 2])))
            expected = _cut(whole, axis, kept * scale, kept_end * scale)
            got = _cut(part, axis, (kept - start) * scale, (kept_end - start) * scale)
            worst = max(worst, float(np.abs(expected - got).max() / max(np.abs(whole).max(), TINY)))
    if worst <= PARITY_TOLERANCE:
        return description
    return replace(description, halo=None, halo_reason=f"a tile differs from the whole by {worst:.0e}")


def _strips(description: ModelDescription, takes: Takes) -> Iterator[_Strip]:
    halo, step = description.halo or 0, description.tile_step
    for axis in (2, 3):
        for start_step, extra in zip(STARTS, EXTRA, strict=True):
            start = start_step * step
            kept = start + halo
            side, _ = takes.fit(kept + halo + extra + max(step, 2), 1)
            yield _Strip(axis, side, start, side, kept, side)  # to the image's end
            end = side - max(step, 1)
            if end - halo > 0:
                yield _Strip(axis, side, 0, end, 0, end - halo)  # from its beginning


def _tile_difference(strip: _Strip, description: ModelDescription, model: Forward, takes: Takes) -> float:
    image = _image(strip.side, strip.axis, description, takes)
    whole = model(image)
    part = model(_cut(image, strip.axis, strip.start, strip.end))
    scale = description.scale
    expected = _cut(whole, strip.axis, strip.kept * scale, strip.kept_end * scale)
    got = _cut(part, strip.axis, (strip.kept - strip.start) * scale, (strip.kept_end - strip.start) * scale)
    return float(np.abs(expected - got).max() / max(np.abs(whole).max(), TINY))


def _seen_beyond(description: ModelDescription, model: Forward, takes: Takes) -> int:
    """How many pixels beyond the halo a changed pixel is still seen, at worst; 0 if it never is."""
    halo, scale = description.halo or 0, description.scale
    worst = 0
    for axis in (2, 3):
        side, _ = takes.fit(2 * halo + description.tile_step + 8, 1)
        image = _image(side, axis, description, takes)
        before = model(image)
        for place in {side // 2, side // 2 + 1, side - 1}:
            touched = image.copy()
            _cut(touched, axis, place, place + 1)[...] = description.value_range - _cut(touched, axis, place, place + 1)
            others = tuple(a for a in range(4) if a != axis)
            moved = np.abs(model(touched) - before).max(axis=others) > TILE_TOLERANCE * np.abs(before).max()
            rows = np.flatnonzero(moved) // scale
            if len(rows):
                worst = max(worst, int(np.abs(rows - place).max()) - halo)
    return max(0, worst)


def _image(side: int, axis: int, description: ModelDescription, takes: Takes) -> Planes:
    _, narrow = takes.fit(1, NARROW)
    shape = (1, 3, side, narrow) if axis == 2 else (1, 3, narrow, side)
    image: Planes = soft_noise(np.random.default_rng(SEED), shape) * np.float32(description.value_range)
    return image


def _cut(planes: Planes, axis: int, start: int, end: int) -> Planes:
    """A view of a part along an axis."""
    part: Planes = planes[(slice(None),) * axis + (slice(start, end),)]
    return part
