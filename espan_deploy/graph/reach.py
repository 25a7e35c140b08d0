"""How far each output pixel sees: the halo that makes tiles exact, and where tiles may begin."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from espan_deploy.graph.hulls import Hulls, TooLargeError
from espan_deploy.graph.kinds import Kind
from espan_deploy.graph.sizes import SizedGraph

SIDES = (96, 192, 384, 768)
"""Lengths of the image followed, until two in a row tell the same."""

NARROW = 16
"""Its other side: rows and columns are followed apart."""

MIN_PERIODS = 3
"""How often a pattern must be seen to count as one."""


@dataclass(frozen=True)
class Reach:
    """What one output pixel depends on.

    halo: input pixels to each side of its own, or None where tiles cannot be exact: ``why`` says then which operator
    sees the whole image, or depends on its size. tile_multiple: tiles with that halo are exact where they start at
    multiples of this: windows and strides begin there. local_halo: the same as halo without the operators that see
    everything, as far as it is known; what approximate tiles need at least.
    """

    halo: int | None
    tile_multiple: int = 1
    why: str = ""
    local_halo: int = 0


@dataclass(frozen=True)
class _Profile:
    """Of one axis: for each place of the output, how far before and after its own it sees; in input pixels."""

    scale: Fraction
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    side: int

    @property
    def halo(self) -> int:
        return int(max(self.before.max(initial=0), self.after.max(initial=0), 0))

    def period(self) -> int | None:
        """After how many input pixels the pattern repeats, away from the image's edges; None where it does not."""
        edge = math.ceil(self.halo * self.scale)
        before, after = (sight[edge : len(sight) - edge] for sight in (self.before, self.after))
        for period in range(1, self.side):
            step = period * self.scale
            if len(before) < MIN_PERIODS * step:
                return None
            if step.denominator == 1 and all(np.array_equal(x[: -int(step)], x[int(step) :]) for x in (before, after)):
                return period
        return None


def reach(graph: SizedGraph, *, multiple: int = 1, least: int = 1) -> Reach:
    """How far the first output of a graph sees. multiple, least: of the sizes it takes.

    A graph of one size is followed at that size: what holds in its middle is taken to hold in a larger image.
    """
    found: Reach | None = None
    fixed = graph.fixed_size
    for small, large in itertools.pairwise(SIDES) if fixed is None else [(min(fixed), max(fixed))]:
        sides = [-(-max(side, least) // multiple) * multiple for side in (small, large, NARROW)]
        try:
            axes = [_follow(graph, axis, *sides if fixed is None else [fixed[axis - 2]] * 3) for axis in (2, 3)]
        except TooLargeError as exc:
            return Reach(None, why=str(exc))
        if None in axes:
            return Reach(None, why="the sizes inside depend on the image")
        known = [axis for axis in axes if axis is not None]
        halo = max(axis.halo for axis in known)
        why = next((axis.why for axis in known if axis.why), "")
        found = Reach(None, why=why or f"what a pixel sees has no bound below {large} pixels", local_halo=halo)
        if all(axis.settled for axis in known):
            periods = [axis.period for axis in known]
            if why or None in periods:
                return Reach(None, why=why or "what a pixel sees depends on where it is", local_halo=halo)
            return Reach(halo, math.lcm(*(period for period in periods if period)), local_halo=halo)
    assert found is not None
    return found


@dataclass(frozen=True)
class _Axis:
    halo: int
    settled: bool
    period: int | None
    why: str


def _follow(graph: SizedGraph, axis: int, small: int, large: int, narrow: int) -> _Axis | None:
    """Follow two images, one twice as long as the other or both the only one, and see what grows with them."""
    shapes = [(side, narrow) if axis == 2 else (narrow, side) for side in (small, large)]
    short, long = (Hulls(graph, graph.at(*shape), axis) for shape in shapes)
    why = ""
    for node in graph.model.graph:
        if any(graph.kinds[output] == Kind.DATA for output in node.outputs):
            same = short.read_extent(node) == long.read_extent(node) <= small
            short.step(node)
            if long.step(node) >= large and same:
                why = why or f"{node.op_type} {node.name} sees the whole image"
                short.ignore_whole(node)
                long.ignore_whole(node)
            elif node.op_type == "Resize":
                why = why or _moves_with_size(node, short, long)
        short.forget(node)
        long.forget(node)
    profiles = [_profile(hulls, axis) for hulls in (short, long)]
    if profiles[0] is None or profiles[1] is None:
        return None
    halo, period = profiles[1].halo, profiles[1].period()
    settled = profiles[0].halo == halo and (period is not None or bool(why) or halo < small // 4)
    return _Axis(halo, settled, period, why)


def _moves_with_size(node: ir.Node, short: Hulls, long: Hulls) -> str:
    """Why an interpolation reads other places in a larger image, or "" where it does not."""
    place = node.attributes.get("coordinate_transformation_mode")
    corners = place is not None and place.as_string() == "align_corners"
    ratios = []
    for hulls in (short, long):
        shapes = hulls.sizes.shape(node.inputs[0]), hulls.sizes.shape(node.outputs[0])
        if shapes[0] is None or shapes[1] is None:
            return ""
        ratios.append([Fraction(out, side) for out, side in zip(shapes[1][2:], shapes[0][2:], strict=True)])
    if ratios[0] == ratios[1] and not corners:
        return ""
    if corners and all(ratio == 1 for ratio in ratios[1]):
        return ""
    return f"Resize {node.name} reads places that depend on the image's size"


def _profile(hulls: Hulls, axis: int) -> _Profile | None:
    """How far each place of the output sees along the axis."""
    output = hulls.output
    if output.low.ndim != 4:
        return None
    others = tuple(a for a in range(4) if a != axis)
    low, high = output.low.min(others).astype(np.int64), output.high.max(others).astype(np.int64)
    scale = Fraction(len(low), hulls.side)
    own = np.arange(len(low)) * scale.denominator // scale.numerator
    # What depends on nothing at all sees its own place only.
    seen = high >= 0
    return _Profile(scale, np.where(seen, own - low, 0), np.where(seen, high - own, 0), hulls.side)
