"""The arithmetic of quantisation, on arrays alone: codes, ranges by least error, smoothing.

Activations have one scale for the whole tensor: unsigned bytes with a zero point, which x86's integer convolutions
take, or signed bytes without one, which TensorRT asks for. Weights are signed, one scale for each output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

Signs = Literal["unsigned", "signed"]

CODE_RANGE: dict[Signs, tuple[int, int]] = {"unsigned": (0, 255), "signed": (-127, 127)}
"""The smallest and the largest activation code."""

WEIGHT_CODES = 127
"""The largest weight code; -128 is left out, so that both signs are alike."""

BINS = 2048

RANGE_SHARES = tuple(float(share) for share in np.linspace(1.0, 0.3, 29))
"""Of the extremes observed, what is tried as the range's end: one peak may cost all other values their precision."""

SMOOTHING_POWERS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Tried for each feature map."""

TINY = 1e-6
"""Ranges below this share of the largest are raised to it: a channel that is always zero has no range of its own."""


@dataclass(frozen=True)
class ActivationCodes:
    """code = round(value / scale) + zero_point, clipped to [low, high]; scale is one positive number."""

    scale: float
    zero_point: int
    signs: Signs = "unsigned"

    @property
    def low(self) -> int:
        """The smallest code."""
        return CODE_RANGE[self.signs][0]

    @property
    def high(self) -> int:
        """The largest code."""
        return CODE_RANGE[self.signs][1]

    @classmethod
    def of_range(cls, low: float, high: float, signs: Signs = "unsigned") -> ActivationCodes:
        """The codes of [low, high], widened to hold zero exactly, which padding needs."""
        low, high = min(low, 0.0), max(high, 0.0)
        if signs == "signed":
            return cls(max(-low, high, np.finfo(np.float32).tiny) / CODE_RANGE[signs][1], 0, signs)
        codes = CODE_RANGE[signs][1]
        scale = max(high - low, np.finfo(np.float32).tiny) / codes
        return cls(scale, int(np.clip(np.rint(-low / scale), 0, codes)), signs)


@dataclass(frozen=True)
class Histogram:
    """How often values came, or how much errors in them weigh. counts: BINS of equal width over [low, high]."""

    counts: Values
    low: float
    high: float

    @property
    def centers(self) -> Values:
        """The middle of each bin."""
        width = (self.high - self.low) / len(self.counts)
        return np.asarray(self.low + width * (np.arange(len(self.counts)) + 0.5), np.float64)


def reading_shifts(readings: int) -> tuple[float, ...]:
    """In codes, what is added before rounding for each of several readings of one feature map.

    Evenly spread over a step around zero, so that the readings' mean has a step ``readings`` times as fine, zero stays
    zero, and what the shifts add is zero in sum.
    """
    return tuple((index + 0.5) / readings - 0.5 for index in range(readings))


def histogram(values: NDArray[np.floating], weights: Values) -> Histogram:
    """Of values (C, N), zero in the range; weights (C,): how much an error in each channel weighs."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    high = high if high > low else low + 1.0
    counts = np.zeros(BINS)
    for channel, weight in zip(values, weights, strict=True):
        counts += weight * np.histogram(channel, BINS, (low, high))[0]
    return Histogram(counts, low, high)


def error_of(codes: ActivationCodes, seen: Histogram) -> float:
    """The sum of squared errors: of uniform rounding within the range, of clipping outside."""
    least, largest = ((code - codes.zero_point) * codes.scale for code in (codes.low, codes.high))
    clipped = np.clip(seen.centers, least, largest) - seen.centers
    return float(seen.counts @ clipped**2) + float(seen.counts.sum()) * codes.scale**2 / 12


def least_error_codes(seen: Histogram, signs: Signs = "unsigned") -> ActivationCodes:
    """The codes whose squared error over the values seen is the least, among shares of their range."""
    tried = (
        ActivationCodes.of_range(seen.low * low_share, seen.high * high_share, signs)
        for low_share in (RANGE_SHARES if seen.low < 0 else (1.0,))
        for high_share in (RANGE_SHARES if seen.high > 0 else (1.0,))
    )
    return min(tried, key=lambda codes: error_of(codes, seen))


def smoothing(channel_range: Values, channel_weight: Values, power: float) -> Values:
    """The factor that each input channel is divided by before it is quantised, and its weights multiplied with.

    channel_range: (C,) largest magnitudes seen. channel_weight: (C,) largest magnitudes of the weights that read it.
    Returns (C,), positive, range**power / weight**(1 - power) (Xiao et al., SmoothQuant, 2023), scaled so that the
    largest channel keeps its range. With power 1 every channel has all the codes, and the weights bear the difference.
    """
    ranges = np.maximum(channel_range, max(TINY * float(channel_range.max(initial=0.0)), np.finfo(np.float32).tiny))
    weights = np.maximum(channel_weight, max(TINY * float(channel_weight.max(initial=0.0)), np.finfo(np.float32).tiny))
    factors: Values = ranges**power / weights ** (1 - power)
    factors /= factors[np.argmax(ranges)]
    return factors


def weight_scales(weight: NDArray[np.floating]) -> Values:
    """(O, ...) -> (O,): for each output channel the scale whose codes hold its largest weight."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1).astype(np.float64)
    return np.asarray(np.maximum(largest, np.finfo(np.float32).tiny) / WEIGHT_CODES, np.float64)


def quantized_weight(weight: NDArray[np.floating], scale: Values) -> NDArray[np.int8]:
    """(O, ...) and (O,) -> codes of the weight's shape, rounded to nearest."""
    column = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return np.clip(np.rint(weight / column), -WEIGHT_CODES, WEIGHT_CODES).astype(np.int8)
