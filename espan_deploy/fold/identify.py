"""What a region computes, measured: its impulse responses, and the proof that they are all there is to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from espan_deploy.errors import FoldError
from espan_deploy.fold.algebra import Array, Convolution, Term, convolution_from_taps, convolve, summed
from espan_deploy.fold.evaluate import Evaluator, Known, Sizes
from espan_deploy.fold.regions import Region, channels_of

TOLERANCE = 1e-12
"""Largest error of a fold, relative to the largest value: float64 rounds at 1e-16, a region adds thousands of terms."""

NOISE = 64 * np.finfo(np.float64).eps
"""A tap this small beside the largest response is rounding left over from taking the bias away, not a weight."""

SizeChange = tuple[int, int]
"""Rows and columns that one feature map has more than another."""

MAX_RADIUS = 20
"""Regions that see further are not measured: no single convolution that wide is cheaper than what it replaces."""

MAX_JOINED = 64
"""Places beyond which slices go to the end. No network rolls by more."""

PROOF_SEED = 20250321


@dataclass(frozen=True)
class Identified:
    """The affine map of a region: target = sum of its terms + bias.

    error_inside, error_border: largest difference from the region itself on random inputs, relative to the largest
    value, away from the image's border and in the ring where padding is seen.
    size_change: rows and columns that the target has more than the sources.
    size_changes: the same of every feature map inside the region.
    """

    terms: tuple[Term, ...]
    bias: Array
    error_inside: float
    error_border: float
    size_change: SizeChange
    size_changes: Mapping[ir.Value, SizeChange]

    @property
    def multiply_adds(self) -> int:
        """For one output position, all channels; a map passed on unchanged costs none."""
        return sum(c.multiply_adds for c in self.convolutions)

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """What multiplies: the terms that are more than a source as it is."""
        return _multiplying(self.terms)

    @property
    def nodes(self) -> int:
        """How many operators it takes: convolutions, concatenations and sums."""
        concatenations = sum(len(term.sources) > 1 for term in self.terms)
        constant = not self.convolutions and bool(self.bias.any())
        return len(self.convolutions) + concatenations + max(len(self.terms) + constant - 1, 0)


def _multiplying(terms: tuple[Term, ...]) -> tuple[Convolution, ...]:
    return tuple(term.convolution for term in terms if not term.convolution.is_identity)


def identify(region: Region, evaluator: Evaluator, budget: int) -> Identified:
    """Measure a region's impulse responses and bias in float64, and prove them on random inputs.

    budget: multiply-adds for one position that the result may have.
    Raises FoldError where the region cannot be evaluated, reaches further than MAX_RADIUS, does not answer an
    impulse as a stride-1 convolution would, or would cost more than the budget.
    """
    probe = _Probe(region, evaluator)
    least = sum(probe.least_cost(index) for index in range(len(region.sources)))
    if least > budget:
        raise FoldError(f"one convolution would cost more: {least} multiply-adds a pixel against {budget}")
    sources = range(len(region.sources))
    alone = [probe.seems_channelwise(index) for index in sources]
    convolutions = probe.convolutions(alone)
    _refuse_above(budget, convolutions)  # before the proof, which is dear where kernels are large
    inside, border = _prove(probe, convolutions)
    if inside > TOLERANCE and any(alone):  # the channels were not as independent as the first of them
        convolutions = probe.convolutions([False for _ in sources])
        _refuse_above(budget, convolutions)
        inside, border = _prove(probe, convolutions)
    return Identified(summed(convolutions), probe.bias, inside, border, probe.size_change, probe.size_changes)


def _refuse_above(budget: int, convolutions: tuple[Convolution, ...]) -> None:
    """Raise FoldError where they are none, or cost more multiply-adds at a position than the budget."""
    terms = summed(convolutions)
    if not terms:
        raise FoldError("its output does not depend on its input")
    cost = sum(convolution.multiply_adds for convolution in _multiplying(terms))
    if cost > budget:
        raise FoldError(f"one convolution would cost more: {cost} multiply-adds a pixel against {budget}")


class _Probe:
    """A region on a bench: images go in, responses come out.

    radius: how far it can see at most. farthest: where it may cut and join. bias: its answer to silence.
    size_change: output size less input size; size_changes: that of each feature map on the way.
    """

    def __init__(self, region: Region, evaluator: Evaluator) -> None:
        self._region, self._evaluator = region, evaluator
        self.radius, self.farthest = _radius(region), _farthest_joined(region)
        if self.radius > MAX_RADIUS:
            raise FoldError(f"it sees {self.radius} pixels far, more than one convolution should")
        self.channels = [_channels(source) for source in region.sources]
        self._firsts: dict[int, Array] = {}
        # An impulse in the middle never feels the border: no path through the region leaves an image this large.
        self._size = 2 * self.radius + 3
        known = self._all_of(self._silent())
        lost = max(0, self._size - min(known[region.target].shape[2:]))
        if lost:
            self._size += 2 * lost
            known = self._all_of(self._silent())
        self._silence = known[region.target]
        if not self._silence.size:
            raise FoldError("it makes nothing of one image")
        height, width = self._silence.shape[2:]
        self.size_changes = {
            value: (array.shape[2] - self._size, array.shape[3] - self._size)
            for value, array in known.items()
            if array.ndim == 4 and channels_of(value) == array.shape[1]
        }
        self.size_change = (height - self._size, width - self._size)
        self.bias: Array = self._silence[0, :, height // 2, width // 2]

    def run(self, arrays: list[Array]) -> Array:
        """The region's output for one array per source; FoldError where it makes no feature map of them."""
        return cast(Array, self._all_of(arrays)[self._region.target])

    def _all_of(self, arrays: list[Array]) -> Known:
        """Every value on the way to that output, and the output."""
        known: Known = dict(zip(self._region.sources, arrays, strict=True))
        result = self._evaluator.value(self._region.target, known, Sizes.of(known))
        if result.ndim != 4 or result.dtype != np.float64:
            raise FoldError(f"it makes {result.dtype} of shape {result.shape}, not a feature map")
        return known

    def _silent(self) -> list[Array]:
        return [np.zeros((1, c, self._size, self._size)) for c in self.channels]

    def _first(self, index: int) -> Array:
        """The first channel's response, (O, 1, 2R+1, 2R+1)."""
        if index not in self._firsts:
            impulse = np.zeros((1, self.channels[index]))
            impulse[0, 0] = 1.0
            self._firsts[index] = self._response(index, impulse)
        return self._firsts[index]

    def seems_channelwise(self, index: int) -> bool:
        """Whether the first channel of this source reaches the first output channel and no other, of as many."""
        taps = self._first(index)
        return 1 < self.channels[index] == len(taps) and bool(taps[0].any()) and not taps[1:].any()

    def convolutions(self, channelwise: list[bool]) -> tuple[Convolution, ...]:
        """One for each source. channelwise: whether its channels are taken to be independent, which the proof tells:
        then one image measures them all, where else each channel takes one."""
        measures = (self._channelwise_taps if alone else self.taps for alone in channelwise)
        return tuple(convolution_from_taps(taps(i), self.size_change) for i, taps in enumerate(measures))

    def _channelwise_taps(self, index: int) -> Array:
        count = self.channels[index]
        together = self._response(index, np.ones((1, count)))
        taps: Array = np.zeros((count, count, *together.shape[2:]))
        taps[np.arange(count), np.arange(count)] = together[:, 0]
        return taps

    def least_cost(self, index: int) -> int:
        """What a convolution of this source must cost at least, from the first channel's response alone."""
        taps = self._first(index)
        reached: NDArray[np.bool_] = np.asarray(taps.any(axis=(1, 2, 3)))
        if not reached.all() or self.channels[index] == 1:
            return 0  # it may be the identity, grouped, or absent: only a full measurement tells
        kernel = convolution_from_taps(taps, self.size_change).weight.shape[2:]
        return int(kernel[0] * kernel[1] * len(reached) * self.channels[index])

    def taps(self, index: int) -> Array:
        """(O, I, 2R+1, 2R+1): what each channel of a source adds to each output channel, by offset."""
        return self._response(index, np.eye(self.channels[index]))

    def _response(self, index: int, impulses: Array) -> Array:
        """The answer to impulses (N, I) in the middle of one source, as taps (O, N, 2R+1, 2R+1)."""
        arrays = [np.zeros((len(impulses), c, self._size, self._size)) for c in self.channels]
        centre, radius = self._size // 2, self.radius
        arrays[index][:, :, centre, centre] = impulses
        answer = self.run(arrays)
        if answer.shape != (len(impulses), *self._silence.shape[1:]):
            raise FoldError(f"it cuts images into others: of {len(impulses)} it makes {len(answer)}")
        response = answer - self._silence
        seen = np.s_[:, :, centre - radius : centre + radius + 1, centre - radius : centre + radius + 1]
        window = response[seen].copy()
        if window.shape[2:] != (2 * radius + 1, 2 * radius + 1):
            raise FoldError("it changes the image's size by more than a convolution does")
        noise = NOISE * max(np.abs(response).max(initial=0.0), np.abs(self._silence).max(initial=0.0))
        response[seen] = 0
        if np.abs(response).max(initial=0.0) > noise:
            raise FoldError("its output depends on pixels further away than its kernels reach")
        # An impulse at p reaches the output at q with the weight of offset p - q: the window is the kernel, reversed.
        taps: Array = window[:, :, ::-1, ::-1].transpose(1, 0, 2, 3).copy()
        taps[np.abs(taps) <= noise] = 0.0
        return taps


def _channels(value: ir.Value) -> int:
    channels = channels_of(value)
    assert channels is not None, "regions only have sources whose channels are known"
    return channels


def _prove(probe: _Probe, convolutions: tuple[Convolution, ...]) -> tuple[float, float]:
    """Largest relative error inside and at the border, over random inputs of several sizes."""
    random = np.random.default_rng(PROOF_SEED)
    radius, inside_error, border_error = probe.radius, 0.0, 0.0
    sizes = [(2 * radius + 3, 2 * radius + 4), (2 * radius + 6, 2 * radius + 3), (1, 2)]
    if 2 * probe.farthest > radius:
        sizes.insert(0, (2 * (radius + probe.farthest) + 3,) * 2)
    for height, width in sizes:
        arrays = [random.standard_normal((1, c, height, width)) for c in probe.channels]
        try:
            expected = probe.run(arrays)
        except FoldError:
            if height == 1:
                continue  # without padding nothing is left of an image this small
            raise
        if 0 in expected.shape:
            continue
        got = probe.bias[None, :, None, None] + sum(
            convolve(x, c.weight, pads=c.pads, dilation=c.dilation, groups=c.groups)
            for x, c in zip(arrays, convolutions, strict=True)
        )
        if got.shape != expected.shape:
            raise FoldError(f"at {height}x{width} it gives {expected.shape[2:]}, a convolution {got.shape[2:]}")
        with np.errstate(over="ignore"):  # weights that died in training: next to nothing is all there is to compare
            error = np.abs(got - expected) / max(float(np.abs(expected).max()), np.finfo(np.float64).tiny)
        ring = np.ones(error.shape[2:], bool)
        ring[radius : error.shape[2] - radius, radius : error.shape[3] - radius] = False
        inside_error = max(inside_error, float(error[:, :, ~ring].max(initial=0.0)))
        border_error = max(border_error, float(error[:, :, ring].max(initial=0.0)))
    return inside_error, border_error


def _radius(region: Region) -> int:
    """How far the region can see at most: kernels add up along a path, shifts by padding or slicing count too."""
    reach: dict[ir.Value, int] = {}
    for node in region.nodes:
        seen = max((reach.get(v, 0) for v in node.inputs if v is not None), default=0) + _node_radius(node)
        for output in node.outputs:
            reach[output] = seen
    return max(1, reach[region.target])


def _node_radius(node: ir.Node) -> int:
    attributes = node.attributes
    if node.op_type in ("Conv", "ConvTranspose", "AveragePool"):
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        known = () if weight is None or weight.const_value is None else weight.const_value.shape.numpy()[2:]
        kernel = attributes["kernel_shape"].as_ints() if "kernel_shape" in attributes else known
        dilations = attributes["dilations"].as_ints() if "dilations" in attributes else [1] * len(kernel)
        pads = list(attributes["pads"].as_ints()) if "pads" in attributes else [0, 0, 0, 0]
        spans = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        begins = pads[: len(spans)]
        return max((max(begin, span - begin) for begin, span in zip(begins, spans, strict=True)), default=0)
    if node.op_type == "Pad" and len(node.inputs) > 1 and node.inputs[1] is not None:
        widths = node.inputs[1].const_value
        return 2 if widths is None else int(np.abs(widths.numpy()).max(initial=0))
    if node.op_type == "Slice":
        starts, axes = (_known_ints(node, index) for index in (1, 3))
        axes = axes if len(node.inputs) > 3 else list(range(len(starts)))
        # A slice from the front moves the image by that much; one from the end is no shift, and the proof will tell.
        shifts = [s for s, axis in zip(starts, axes, strict=False) if axis in (2, 3, -1, -2)]
        return min(max([0, *shifts]), MAX_RADIUS + 1)
    return 0


def _farthest_joined(region: Region) -> int:
    """The largest constant place at which a region that joins anything cuts: a roll by as much is nothing on less.

    On whatever axis: features may lie there with channels last.
    """
    if not any(node.op_type == "Concat" for node in region.nodes):
        return 0
    cuts = (cut for node in region.nodes if node.op_type == "Slice" for i in (1, 2) for cut in _known_ints(node, i))
    return max((abs(cut) for cut in cuts if abs(cut) <= MAX_JOINED), default=0)


def _known_ints(node: ir.Node, index: int) -> list[int]:
    value = node.inputs[index] if index < len(node.inputs) else None
    return [] if value is None or value.const_value is None else [int(i) for i in value.const_value.numpy()]
