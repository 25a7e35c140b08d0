"""What a quantised network is made of, beside its float graph: data without any runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.quantize.arithmetic import ActivationCodes
from espan_deploy.quantize.layers import Skipped


@dataclass(frozen=True)
class QuantizedValue:
    """A feature map as convolutions read it: value / smoothing, in codes.

    smoothing: (C,), not zero; negative where a channel is read with its sign turned. exact: the codes hold every value
    without loss, as a picture's bytes do.
    """

    smoothing: NDArray[np.float64]
    codes: ActivationCodes
    exact: bool = False


@dataclass(frozen=True)
class QuantizedWeight:
    """A convolution's weights for an input that is smoothed.

    codes: (O, readings * I / groups, kh, kw) int8. scale: (O,) positive. bias: (O,) in float.
    readings: how often the input is quantised, each time shifted by a part of a step; one after the other they are the
    convolution's input channels. More than one only without groups.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float64]
    bias: NDArray[np.float32]
    readings: int = 1


@dataclass(frozen=True)
class Scheme:
    """All of it. values: name of a feature map -> how it is read. weights: name of a convolution -> its weights.

    skipped: what stays in float, and why. Convolutions in neither are the caller's mistake.
    """

    values: Mapping[str, QuantizedValue]
    weights: Mapping[str, QuantizedWeight]
    skipped: tuple[Skipped, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Scales and zero points by name, to six digits: what a reader compares. Weights' codes are in the graph."""
        return {
            "values": {
                name: {
                    "scale": _digits(how.codes.scale),
                    "zero_point": how.codes.zero_point,
                    "smoothing": [_digits(factor) for factor in how.smoothing],
                }
                for name, how in self.values.items()
            },
            "weights": {
                name: {"scale": [_digits(each) for each in weight.scale]} for name, weight in self.weights.items()
            },
        }


def _digits(number: float) -> float:
    return float(f"{number:.6g}")
