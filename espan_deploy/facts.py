"""What a network does not say of itself, found by trying: its scale, and the sizes and batches it takes.

Nothing here knows how a network is made. It is called with images of many sizes; what it refuses, and what it makes of
the others, is what it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from espan_deploy.backends.probe import made_up_photograph
from espan_deploy.description import Padding
from espan_deploy.errors import ExportError

Planes = NDArray[np.float32]
"""(N, 3, H, W) in [0, value_range]."""

Forward = Callable[[Planes], Planes]
"""(N, 3, H, W) -> (N, 3, scale*H, scale*W)."""

FIRST_SIDES = (48, 64, 60, 96, 128, 70, 100, 256, 224)
"""Sides of a square tried until one is taken: multiples of all that windows and strides come in, soonest the small."""

MAX_MULTIPLE = 64
"""Sizes are looked for up to this much above one that is taken: no network we know takes fewer."""

STEPS = (1, 2, 4)
"""How many of its steps above a size that is taken are tried, to tell a multiple."""

SEED = 36

ALIKE = 1e-4
"""Largest difference, relative to the largest value, between an image's results alone and in a batch."""

COMPARED_SIDE = 48
"""Of the image on which paddings are compared, or more."""

PADDINGS: tuple[Padding, ...] = ("edge", "reflect")

SOFTENING = 6
"""How often neighbours are averaged: a blur of about three pixels."""


@dataclass(frozen=True)
class Takes:
    """The sizes a network takes: heights and widths of at least ``least`` that are multiples of ``multiple``.

    scale: output size over input size. fixed: the only height and width it takes, or None. max_batch: 1 where images
    of one batch are refused or change each other's results, None where any number may go together. padding: how an
    image of another size is best continued.
    """

    scale: int
    multiple: int = 1
    least: int = 1
    fixed: tuple[int, int] | None = None
    max_batch: int | None = None
    padding: Padding = "edge"

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
        except Exception as exc:
            lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
            self.reason = self.reason or f"{type(exc).__name__}: {lines[0] if lines else 'no message'}"
            return None
        self.made = self.made or shape
        if len(shape) != 4 or shape[:2] != (1, channels) or shape[2] % height or shape[2] * width != shape[3] * height:
            return None
        return shape[2] // height or None

    def refuse_chance(self, height: int, width: int, name: str) -> None:
        """Raise ExportError where the same image of a size that is taken gives two results."""
        x = soft_noise(np.random.default_rng(SEED), (1, 3, height, width))
        first, second = self._forward(x), self._forward(x)
        same = np.array_equal(first, second, equal_nan=True)
        if not same and not np.abs(first - second).max() <= ALIKE * np.abs(first).max():
            raise ExportError(
                f"{name} gives another result each time: it draws random numbers, or counts its calls",
                hint="what is deployed must give the same picture twice; take the noise out of its forward",
            )


def find_takes(
    forward: Forward, name: str, *, fixed: tuple[int, int] | None = None, stated: Takes | None = None
) -> Takes:
    """Try a network until it is known which sizes it takes.

    fixed: the only size to try. stated: what is said of it, tried first and not believed. name: for messages.
    Raises ExportError where it takes none, gives no whole scale or another than is said, takes grey or four-channel
    images, or gives another result each time.
    """
    takes = _takes_sizes(_Trial(forward), name, fixed, stated)
    if stated is not None and stated.scale != takes.scale:
        raise ExportError(f"{name} should enlarge {stated.scale} times by what its weights say, and does {takes.scale}")
    forward = at_taken_sizes(forward, name)
    takes = replace(takes, max_batch=find_max_batch(forward, takes))
    if takes.fixed is None and takes.multiple == takes.least == 1:
        return takes
    return replace(takes, padding=_best_padding(forward, takes))


def _takes_sizes(trial: _Trial, name: str, fixed: tuple[int, int] | None, stated: Takes | None) -> Takes:
    if fixed is not None:
        scale = trial.scale(*fixed)
        if scale is None:
            raise _refusal(trial, name, fixed)
        trial.refuse_chance(*fixed, name)
        return Takes(scale, fixed=fixed)
    sides, most = list(FIRST_SIDES), MAX_MULTIPLE
    if stated is not None:
        sides.insert(0, stated.fit(sides[0], sides[0])[0])
        most = max(most, stated.multiple)
    side = next((s for s in sides if trial.scale(s, s)), None)
    if side is None:
        raise _refusal(trial, name, (sides[0], sides[0]))
    scale = trial.scale(side, side)
    assert scale is not None
    trial.refuse_chance(side, side, name)
    # A network that pads to even sizes and halves them twice takes 51 and 52 after 48, and then 55: not every third.
    steps = (d for d in range(1, most + 1) if all(trial.scale(*2 * (side + n * d,)) == scale for n in STEPS))
    multiple = next(steps, None)
    if multiple is None:
        return Takes(scale, fixed=(side, side))
    if side % multiple or trial.scale(side + multiple, side) != scale:
        multiple = side
        if trial.scale(2 * side, side) != scale:
            return Takes(scale, fixed=(side, side))  # squares only
    # The smallest, by halving: what is below a refused size is refused as well. Two in a row must be taken: a network
    # that mirrors its border up to a multiple takes a small multiple, and not the next size.
    refused, taken = 0, side // multiple

    def takes_from(count: int) -> bool:
        return all(trial.scale(n * multiple, n * multiple) == scale for n in (count, count + 1))

    if takes_from(1):
        taken = 1
    while taken - refused > 1:
        middle = (refused + taken) // 2
        if takes_from(middle):
            taken = middle
        else:
            refused = middle
    return Takes(scale, multiple, taken * multiple)


def at_taken_sizes(forward: Forward, name: str) -> Forward:
    """A network whose sizes are known. It raises ExportError where it refuses one all the same. name: for messages."""

    def certain(x: Planes) -> Planes:
        try:
            return forward(x)
        except Exception as exc:
            lines = [*filter(None, str(exc).splitlines()), "no message"]
            size, reason = f"{x.shape[2]}x{x.shape[3]}", f"{type(exc).__name__}: {lines[0]}"
            raise ExportError(f"{name} takes images of other sizes and none of {size}: {reason}") from exc

    return certain


def at_multiples(forward: Forward, takes: Takes, multiple: int) -> Takes:
    """The same for images of which both sides are multiples of this too; others are to be continued."""
    multiple = math.lcm(takes.multiple, multiple)
    fewer = replace(takes, multiple=multiple, least=-(-takes.least // multiple) * multiple)
    return replace(fewer, padding=_best_padding(forward, fewer))


def find_max_batch(forward: Forward, takes: Takes, *, alone: Forward | None = None) -> int | None:
    """1 where two images together are not what each is alone, else None. alone: what makes the results to compare."""
    x = soft_noise(np.random.default_rng(SEED), (2, 3, *takes.fit(20, 24)))
    expected = np.concatenate([(alone or forward)(image[None]) for image in x])
    try:
        together = forward(x)
    except Exception:
        return 1
    same = together.shape == expected.shape and np.abs(together - expected).max() <= ALIKE * np.abs(expected).max()
    return None if same else 1


def _best_padding(forward: Forward, takes: Takes) -> Padding:
    """What gives, on an image that had to be continued, the results closest to those of the image it was cut from."""
    side = max(2 * takes.least, COMPARED_SIDE)
    rows, columns = takes.fit(side, side)
    whole = made_up_photograph(max(rows, columns), 1)[:rows, :columns].astype(np.float32).transpose(2, 0, 1)[None] / 255
    expected = forward(whole)
    if takes.fixed is not None:
        height, width = 3 * rows // 4, 3 * columns // 4
    elif takes.multiple > 1:
        height, width = rows - takes.multiple // 2, columns - takes.multiple // 2
    else:
        height = width = -(-2 * takes.least // 3)
    up, right = takes.fit(height, width)
    errors: dict[Padding, float] = {}
    for padding in PADDINGS:
        sides = ((0, 0), (0, 0), (0, up - height), (0, right - width))
        got = forward(np.pad(whole[:, :, :height, :width], sides, mode=padding))
        kept = np.s_[:, :, : height * takes.scale, : width * takes.scale]
        errors[padding] = float(np.square(got[kept] - expected[kept]).mean())
    return min(PADDINGS, key=errors.__getitem__)


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
