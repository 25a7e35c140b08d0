"""What a network does not say of itself, found by trying: its scale, and the sizes and batches it takes.

Nothing here knows how a network is made. It is called with images of many sizes; what it refuses, and what it makes of
the others, is what it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espan_deploy.errors import ExportError

Planes = NDArray[np.float32]
"""(N, 3, H, W) in [0, value_range]."""

Forward = Callable[[Planes], Planes]
"""(N, 3, H, W) -> (N, 3, scale*H, scale*W)."""

FIRST_SIDES = (64, 96, 60, 128, 70, 100, 256, 224)
"""Sides of a square tried until one is taken: multiples of all that windows and strides come in, soonest the small."""

MAX_MULTIPLE = 64
"""Sizes are looked for up to this much above one that is taken: no network we know takes fewer."""

SEED = 36

SOFTENING = 6
"""How often neighbours are averaged: a blur of about three pixels."""


@dataclass(frozen=True)
class Takes:
    """The sizes a network takes: heights and widths of at least ``least`` that are multiples of ``multiple``.

    scale: output size over input size. fixed: the only height and width it takes, or None.
    """

    scale: int
    multiple: int = 1
    least: int = 1
    fixed: tuple[int, int] | None = None

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """The next larger size that is taken; the fixed one, where there is one."""
        if self.fixed is not None:
            return self.fixed
        rows, columns = (-(-max(side, self.least) // self.multiple) * self.multiple for side in (height, width))
        return rows, columns


class _Trial:
    """A network under test: whether it takes a size, each tried once."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._scales: dict[tuple[int, int, int], int | None] = {}
        self.reason = ""
        self.made: tuple[int, ...] | None = None

    def scale(self, height: int, width: int, channels: int = 3) -> int | None:
        """The scale at this size, or None where the network refuses it or makes no image of it."""
        key = (height, width, channels)
        if key not in self._scales:
            self._scales[key] = self._try(*key)
        return self._scales[key]

    def _try(self, height: int, width: int, channels: int) -> int | None:
        x = np.random.default_rng(SEED).random((1, channels, height, width), np.float32)
        try:
            shape = self._forward(x).shape
        except Exception as exc:  # noqa: BLE001 - whatever a network or a runtime raises
            lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
            self.reason = self.reason or f"{type(exc).__name__}: {lines[0] if lines else 'no message'}"
            return None
        self.made = self.made or shape
        if len(shape) != 4 or shape[:2] != (1, channels) or shape[2] % height or shape[2] * width != shape[3] * height:
            return None
        return shape[2] // height or None


def find_takes(forward: Forward, name: str, *, fixed: tuple[int, int] | None = None) -> Takes:
    """Try a network until it is known which sizes it takes.

    fixed: the only size to try. name: for messages.
    Raises ExportError where it takes none, gives no whole scale, or takes grey or four-channel images.
    """
    trial = _Trial(forward)
    if fixed is not None:
        scale = trial.scale(*fixed)
        if scale is None:
            raise _refusal(trial, name, fixed)
        return Takes(scale, fixed=fixed)
    side = next((s for s in FIRST_SIDES if trial.scale(s, s)), None)
    if side is None:
        raise _refusal(trial, name, (FIRST_SIDES[0], FIRST_SIDES[0]))
    scale = trial.scale(side, side)
    assert scale is not None
    steps = (d for d in range(1, MAX_MULTIPLE + 1) if trial.scale(side + d, side + d) == scale)
    multiple = next(steps, None)
    if multiple is None:
        return Takes(scale, fixed=(side, side))
    if side % multiple or trial.scale(side + multiple, side) != scale:
        multiple = side
    # The smallest, by halving: what is below a refused size is refused as well.
    refused, taken = 0, side // multiple
    if trial.scale(multiple, multiple) == scale:
        taken = 1
    while taken - refused > 1:
        middle = (refused + taken) // 2
        if trial.scale(middle * multiple, middle * multiple) == scale:
            taken = middle
        else:
            refused = middle
    return Takes(scale, multiple, taken * multiple)


def _refusal(trial: _Trial, name: str, size: tuple[int, int]) -> ExportError:
    """What to say of a network that takes no size that was tried, this one first."""
    reason, made = trial.reason, trial.made
    for channels, what in ((1, "grey images, of one channel"), (4, "images of four channels")):
        if trial.scale(*size, channels):
            return ExportError(
                f"{name} takes {what}; RGB, of three, is what is upscaled",
                hint="export a class that makes its input of RGB and RGB of its output",
            )
    if made is not None:
        return ExportError(
            f"{name} makes {made} of an image, expected (1, 3, scale*H, scale*W) with a whole scale",
            hint="the network must give the enlarged image and nothing else",
        )
    return ExportError(f"{name} cannot upscale (1, 3, {size[0]}, {size[1]}) on the CPU: {reason}")


PROVEN_SIZES = ((1, 37, 52), (1, 64, 33), (2, 24, 41), (1, 100, 74))
"""Batch, height and width compared, or the next larger that the network takes. A second size is what shows a graph
that was frozen at the first; the largest is larger than most networks' windows."""


def proven_sizes(takes: Takes, margin: int = 0) -> Iterator[tuple[int, int, int]]:
    """Batches, heights and widths at which a model is held against its network, the smallest taken among them.

    margin: pixels along the edges that are compared apart, for which the sizes grow.
    """
    if takes.fixed is not None:
        yield from ((1, *takes.fixed), (2, *takes.fixed))
        return
    seen = set()
    for batch, height, width in ((1, takes.least, takes.least + takes.multiple), *PROVEN_SIZES):
        size = (batch, *takes.fit(height + 2 * margin, width + 2 * margin))
        if size not in seen:
            seen.add(size)
            yield size


def soft_noise(random: np.random.Generator, shape: tuple[int, ...]) -> Planes:
    """Noise in [0, 1] as soft as a photograph; on white noise networks leave the range they were trained for, and
    amplify what float32 rounds."""
    noise = random.random(shape)
    for axis in (2, 3):
        for _ in range(SOFTENING):
            noise = (noise + np.roll(noise, 1, axis)) / 2
    low, high = noise.min(axis=(1, 2, 3), keepdims=True), noise.max(axis=(1, 2, 3), keepdims=True)
    # One pixel has no contrast.
    soft: Planes = ((noise - low) / np.maximum(high - low, 1e-6)).astype(np.float32)
    return soft
