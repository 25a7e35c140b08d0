"""One walk through a network, in float and quantised at once, that settles each convolution as it comes to it.

What a convolution reads is then what the quantised network gives it, and its weights are fitted to that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from espan_deploy.quantize.arithmetic import (
    TINY,
    WEIGHT_CODES,
    ActivationCodes,
    SeenChannels,
    Signs,
    Values,
    reading_shifts,
    weight_scales,
)
from espan_deploy.quantize.layers import Convolution
from espan_deploy.quantize.rounding import Moments, compensated, corrected_bias, rounded
from espan_deploy.quantize.scheme import QuantizedValue, QuantizedWeight, Scheme
from espan_deploy.quantize.torch_graph import TorchGraph, convolution

if TYPE_CHECKING:
    import torch

PATCHES = 20_000
"""Input patches that a convolution is fitted on: some seventy for each of a 3x3 convolution's weights."""

SEEN_VALUES = 2_000_000

ZERO_POINTS = range(0, 144, 8)
"""Tried for each feature map; the larger half of what a channel holds is above zero once it has its sign."""

LEVELLINGS = (0.0, 0.15, 0.3)
"""Powers, tried for each feature map: how far channels whose weights are small get larger steps, and larger weights."""

ROUNDING_LEFT = 0.3
"""Of the error of rounding to nearest, what is left once weights are rounded for the output."""

SEED = 8

CALLED = Callable[[str], None]


def reconstruct(
    model: onnx.ModelProto,
    convolutions: Sequence[Convolution],
    images: NDArray[np.float32],
    *,
    keep: Collection[str] = (),
    twice: Collection[str] = (),
    signs: Signs = "unsigned",
    exact_input: ActivationCodes | None = None,
    start: Scheme | None = None,
    progress: CALLED | None = None,
) -> Scheme:
    """Codes for every convolution of a float32 graph but those in ``keep`` (names of nodes).

    images: (N, 3, H, W) in the network's range; kept small enough to hold N feature maps of this size twice.
    twice: of the convolutions, those that read their input twice, half a step apart.
    exact_input: the codes that hold the network's input without loss, where there are some. start: the convolutions
    in it are as they are there, and so are all its feature maps.
    """
    import torch

    wanted = [conv for conv in convolutions if conv.name not in keep]
    walk = _Walk(model, wanted, signs, twice=twice, exact_input=exact_input, progress=progress or (lambda _text: None))
    if start is not None:
        walk.values.update(start.values)
        walk.weights.update({name: weight for name, weight in start.weights.items() if name not in keep})
    batch = torch.from_numpy(images)
    with torch.no_grad():
        TorchGraph(model)(torch.cat([batch, batch]), walk.convolve)
    return Scheme(walk.values, walk.weights)


class _Walk:
    """The state of the walk; ``convolve`` is called for each convolution in the graph's order."""

    def __init__(
        self,
        model: onnx.ModelProto,
        convolutions: Sequence[Convolution],
        signs: Signs,
        *,
        twice: Collection[str],
        exact_input: ActivationCodes | None,
        progress: CALLED,
    ) -> None:
        self._by_name = {c.name: c for c in convolutions}
        self._readers: dict[str, list[Convolution]] = {}
        for each in convolutions:
            self._readers.setdefault(each.value, []).append(each)
        self._exact = {model.graph.input[0].name: exact_input} if exact_input else {}
        self._progress, self._signs, self._twice = progress, signs, twice
        self.values: dict[str, QuantizedValue] = {}
        self.weights: dict[str, QuantizedWeight] = {}

    def convolve(
        self, node: onnx.NodeProto, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The first half of the batch in float, the second as quantised."""
        import torch

        conv = self._by_name.get(node.name)
        if conv is None:
            return convolution(node, x, weight, bias)
        exact, given = x.chunk(2)
        if conv.value not in self.values:
            self.values[conv.value] = self._value(conv.value, exact)
        how = self.values[conv.value]
        factors = torch.from_numpy(how.smoothing.astype(np.float32)).view(1, -1, 1, 1)
        readings = 2 if conv.name in self._twice else 1
        coded = through_codes(given / factors, how.codes, readings)
        if conv.name not in self.weights:
            self._progress(f"fitting convolution {len(self.weights) + 1} of {len(self._by_name)}: {conv.name}")
            self.weights[conv.name] = fit_weight(conv, how.smoothing, coded, exact / factors, readings)
        fitted = self.weights[conv.name]
        scale = torch.from_numpy(fitted.scale.astype(np.float32)).view(-1, 1, 1, 1)
        return torch.cat(
            [
                convolution(node, exact, weight, bias),
                convolution(
                    node,
                    coded,
                    torch.from_numpy(fitted.codes.astype(np.float32)) * scale,
                    torch.from_numpy(fitted.bias),
                ),
            ]
        )

    def _value(self, name: str, exact: torch.Tensor) -> QuantizedValue:
        channels = exact.shape[1]
        if name in self._exact:
            return QuantizedValue(np.ones(channels), self._exact[name], exact=True)
        values = exact.numpy().transpose(1, 0, 2, 3).reshape(channels, -1)
        return least_error_value(values, self._readers[name], self._signs)


def least_error_value(
    values: NDArray[np.float32], readers: Sequence[Convolution], signs: Signs = "unsigned"
) -> QuantizedValue:
    """Smoothing and codes for a feature map (C, N) whose error, as its readers' outputs show it, is the least.

    A channel's errors are taken to be independent of each other; to that comes what rounding smoothed weights costs.
    """
    some = values[:, :: max(1, values.size // SEEN_VALUES)]
    # Of a map whose channels are of either sign, all codes are on one side of zero.
    sign = np.where(-some.min(axis=1) > some.max(axis=1), -1.0, 1.0) if signs == "unsigned" else np.ones(len(some))
    seen = SeenChannels.of(some * sign[:, None].astype(some.dtype))
    largest: Values = np.max([reader.weight_of_channels() for reader in readers], axis=0)
    energy = np.sum([reader.energy_of_channels() for reader in readers], axis=0)
    power_of_channels = np.square(some, dtype=np.float64).mean(axis=1)
    best, least = None, np.inf
    for zero_point in ZERO_POINTS if signs == "unsigned" else (0,):
        codes = ActivationCodes(1.0, zero_point, signs)
        finest = seen.least_error_steps(codes)
        for power in LEVELLINGS:
            steps = finest * _levelling(finest * largest) ** power
            error = float(energy @ seen.errors(steps, codes))
            for reader in readers:
                error += ROUNDING_LEFT * rounding_error(reader.scaled(steps), power_of_channels / steps**2)
            if error < least:
                scale = float(steps.max())
                best, least = QuantizedValue(sign * steps / scale, replace(codes, scale=scale)), error
    assert best is not None
    return best


def _levelling(weights: Values) -> Values:
    """(C,), at least 1: what makes them all as large as the largest."""
    least = TINY * max(float(weights.max()), np.finfo(np.float32).tiny)
    factors: Values = weights.max() / np.maximum(weights, least)
    return np.maximum(factors, 1.0)


def rounding_error(weight: NDArray[np.float64], power_of_channels: NDArray[np.float64]) -> float:
    """What rounding weights (O, I, kh, kw) to nearest does to the outputs, summed over them.

    power_of_channels: (C,) mean squares of the inputs; with groups, all of them count for every output.
    """
    steps = np.abs(weight).reshape(len(weight), -1).max(axis=1) / WEIGHT_CODES
    places, groups = weight.shape[2] * weight.shape[3], len(power_of_channels) // weight.shape[1]
    return float(np.square(steps).sum() / 12 * places * power_of_channels.sum() / groups)


def through_codes(x: torch.Tensor, codes: ActivationCodes, readings: int = 1) -> torch.Tensor:
    """What is left of values (N, C, H, W) once they went through codes; of each reading, along the channels."""
    import torch

    steps = x / codes.scale
    low, high = codes.low - codes.zero_point, codes.high - codes.zero_point
    each = [torch.round(steps + shift).clamp_(low, high) for shift in reading_shifts(readings)]
    return torch.cat(each, 1) * codes.scale


def fit_weight(
    conv: Convolution, factors: NDArray[np.float64], coded: torch.Tensor, exact: torch.Tensor, readings: int = 1
) -> QuantizedWeight:
    """The codes with which a convolution does on ``coded`` (N, readings * C, H, W) what it does in float on ``exact``
    (N, C, H, W)."""
    if readings > 1:
        conv = replace(conv, weight=np.tile(conv.weight / readings, (1, readings, 1, 1)))
        factors, exact = np.tile(factors, readings), exact.repeat(1, readings, 1, 1)
    smooth = conv.scaled(factors)
    outputs = len(smooth) // conv.groups
    codes, scales, biases = np.empty(smooth.shape, np.int8), np.empty(len(smooth)), np.empty(len(smooth))
    for group in range(conv.groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        weight = smooth[rows].reshape(outputs, -1)
        moments = Moments.of(patches(conv, coded, group), patches(conv, exact, group))
        better = compensated(weight, moments)
        scale = weight_scales(better)
        found = rounded(better, scale, moments.covariance)
        codes[rows], scales[rows] = found.reshape(smooth[rows].shape), scale
        biases[rows] = corrected_bias(conv.bias[rows].astype(np.float64), weight, found * scale[:, None], moments)
    return QuantizedWeight(codes, scales, biases.astype(np.float32), readings)


def patches(conv: Convolution, x: torch.Tensor, group: int) -> NDArray[np.float64]:
    """Some of what a convolution's kernel lies on, (PATCHES, D), at places that depend on nothing but the shapes."""
    import torch.nn.functional as F

    top, left, bottom, right = conv.pads
    width = conv.weight.shape[1]
    padded = F.pad(x[:, group * width : (group + 1) * width], (left, right, top, bottom)).numpy()
    rows, columns = (
        (size - 1) * dilation + 1 for size, dilation in zip(conv.weight.shape[2:], conv.dilations, strict=True)
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), (2, 3))
    windows = windows[:, :, :: conv.strides[0], :: conv.strides[1], :: conv.dilations[0], :: conv.dilations[1]]
    count, _, height, breadth = windows.shape[:4]
    picked = np.random.default_rng(SEED).integers(0, count * height * breadth, PATCHES)
    chosen = windows[picked // (height * breadth), :, picked // breadth % height, picked % breadth]
    return chosen.reshape(PATCHES, -1).astype(np.float64)
