"""The arithmetic of quantisation, on arrays alone: codes, and steps by least error.

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

BINS = 1024

STEP_SHARES = tuple(float(share) for share in np.linspace(1.0, 0.3, 15))
"""Of the step that holds all that a channel held, what is tried: one peak may cost all other values their precision."""

LEAST_RANGE = 1e-30
"""Of a channel that is always zero, so that bins have a width."""

TINY = 1e-6
"""Steps below this share of the largest are raised to it: a channel that is always zero has none of its own."""


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


@dataclass(frozen=True)
class SeenChannels:
    """What the channels of a feature map hold, in BINS bins each from the least to the largest value, zero among them.

    centers: (C, BINS); of the bin with zero, zero. shares: (C, BINS), of the values. low, high: (C,), the extremes.
    """

    centers: Values
    shares: Values
    low: Values
    high: Values

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> SeenChannels:
        """Of values (C, N)."""
        low, high = (np.asarray(each, np.float64) for each in (values.min(axis=1), values.max(axis=1)))
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        high = np.maximum(high, low + LEAST_RANGE)
        counts = [np.histogram(each, BINS, (a, b))[0] for each, a, b in zip(values, low, high, strict=True)]
        widths = (high - low)[:, None] / BINS
        centers = low[:, None] + widths * (np.arange(BINS) + 0.5)
        centers = np.where(np.abs(centers) <= widths / 2, 0.0, centers)
        return cls(centers, np.array(counts) / values.shape[1], low, high)

    def errors(self, steps: Values, codes: ActivationCodes) -> Values:
        """(C,): mean squares of what rounding to codes of such a step, and clipping, do to each channel."""
        least, largest = codes.low - codes.zero_point, codes.high - codes.zero_point
        column = steps[:, None]
        rounded = np.clip(np.rint(self.centers / column), least, largest) * column
        found: Values = (self.shares * (rounded - self.centers) ** 2).sum(axis=1)
        return found

    def least_error_steps(self, codes: ActivationCodes) -> Values:
        """(C,), positive: each channel's step of the least error. What is below zero is clipped where no codes are."""
        below, above = codes.zero_point - codes.low, codes.high - codes.zero_point
        holding = np.maximum(self.high / above, -self.low / below if below else 0.0)
        holding = np.maximum(holding, TINY * float(holding.max()))
        tried = holding * np.array(STEP_SHARES)[:, None]
        errors = np.array([self.errors(steps, codes) for steps in tried])
        found: Values = tried[errors.argmin(axis=0), np.arange(len(holding))]
        return found


def reading_shifts(readings: int) -> tuple[float, ...]:
    """In codes, what is added before rounding for each of several readings of one feature map.

    Evenly spread over a step around zero, so that the readings' mean has a step ``readings`` times as fine, zero stays
    zero, and what the shifts add is zero in sum.
    """
    return tuple((index + 0.5) / readings - 0.5 for index in range(readings))


def weight_scales(weight: NDArray[np.floating]) -> Values:
    """(O, ...) -> (O,): for each output channel the scale whose codes hold its largest weight."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1).astype(np.float64)
    return np.asarray(np.maximum(largest, np.finfo(np.float32).tiny) / WEIGHT_CODES, np.float64)


def quantized_weight(weight: NDArray[np.floating], scale: Values) -> NDArray[np.int8]:
    """(O, ...) and (O,) -> codes of the weight's shape, rounded to nearest."""
    column = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return np.clip(np.rint(weight / column), -WEIGHT_CODES, WEIGHT_CODES).astype(np.int8)
