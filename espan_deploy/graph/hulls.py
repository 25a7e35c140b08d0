"""Which rows (or columns) of the image each value inside a graph may depend on, for one size: structure, no weights.

Every element of every value carries the first and the last row of the image it depends on. What moves values about
(reshapes, windows, rolls) moves these along; what mixes values joins them. The result holds for all weights and all
images, so it may be larger than the truth, and never smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from espan_deploy.graph import hull_windows as windows
from espan_deploy.graph.hull import NOTHING, Hull, join, nothing
from espan_deploy.graph.sizes import Shape, SizedGraph, Sizes

MASKED = -50.0
"""What is added to an attention's logits to hide a value; e to that power is lost beside anything in float32."""


MAX_ELEMENTS = 1 << 26
"""Of one value: more would take too long, and too much memory."""


MAX_WORK = 1 << 30
"""Elements of all values of one image together: some seconds."""


class TooLargeError(Exception):
    """More than MAX_ELEMENTS or MAX_WORK."""


class Hulls:
    """The hulls of a graph's values for an image of one size, node after node in the graph's order.

    axis: 2 for rows, 3 for columns.
    """

    def __init__(self, graph: SizedGraph, sizes: Sizes, axis: int) -> None:
        self.graph, self.sizes = graph, sizes
        shape = sizes.input_shape
        self.side = shape[axis]
        self._left: dict[ir.Value, int] = {}
        self._work = 0
        places = np.arange(self.side, dtype=np.int16).reshape([-1 if a == axis else 1 for a in range(4)])
        self._hulls = {graph.input: Hull(np.broadcast_to(places, shape), np.broadcast_to(places, shape))}
        for node in graph.model.graph:
            for value in node.inputs:
                if value is not None:
                    self._left[value] = self._left.get(value, 0) + 1

    def read_extent(self, node: ir.Node) -> int:
        """The most rows that an element of a node's inputs spans."""
        return max((self._hulls[v].extent for v in node.inputs if v in self._hulls), default=0)

    def step(self, node: ir.Node) -> int:
        """Find the hulls of a node's results, and the most rows that an element of them spans."""
        found = self._results(node)
        self._hulls.update(zip(node.outputs, found, strict=True))
        return max(hull.extent for hull in found)

    def ignore_whole(self, node: ir.Node) -> None:
        """Take those elements of a node's results that depend on the whole side to depend on nothing."""
        for output in node.outputs:
            hull = self._hulls[output]
            whole = hull.high - hull.low + 1 >= self.side
            low, high = (np.where(whole, no, part) for no, part in zip(NOTHING, (hull.low, hull.high), strict=True))
            self._hulls[output] = Hull(low, high, hull.hidden)

    @property
    def output(self) -> Hull:
        """Of the graph's first output."""
        return self._hulls[self.graph.model.graph.outputs[0]]

    def forget(self, node: ir.Node) -> None:
        """Drop what this node was the last to read."""
        for value in node.inputs:
            if value is not None:
                self._left[value] -= 1
                if not self._left[value] and not value.is_graph_output():
                    self._hulls.pop(value, None)

    def _results(self, node: ir.Node) -> list[Hull]:
        shapes = [self.sizes.shape(output) for output in node.outputs]
        elements = [math.prod(shape or ()) for shape in shapes]
        self._work += sum(elements)
        if max(elements) > MAX_ELEMENTS or self._work > MAX_WORK:
            raise TooLargeError(f"{node.op_type} {node.name} is too large to follow")
        operator = _OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if operator is None and node.op_type in POINTWISE:
            operator = _pointwise
        found = None
        read = [self.sizes.shape(value) for value in node.inputs if value in self._hulls]
        if operator is not None and None not in (*shapes, *read):
            found = operator(Reading(self, node))
        if found is None:
            found = [self._everything(node)] * len(shapes)
        return [hull.to(shape or ()) for hull, shape in zip(found, shapes, strict=True)]

    def _everything(self, node: ir.Node) -> Hull:
        """One element that depends on all that the node may read; a subgraph may read any value before it."""
        read = [self._hulls[v] for v in node.inputs if v is not None and v in self._hulls]
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            read += list(self._hulls.values())
        lows, highs = [h.low.min(initial=NOTHING[0]) for h in read], [h.high.max(initial=NOTHING[1]) for h in read]
        return Hull(np.asarray(min(lows, default=NOTHING[0])), np.asarray(max(highs, default=NOTHING[1])))

    def hull(self, value: ir.Value | None) -> Hull | None:
        """Of a value that depends on pixels, else None."""
        return None if value is None else self._hulls.get(value)


class Reading:
    """A node and what its inputs are: for those that depend on pixels a hull, for the others an array."""

    def __init__(self, hulls: Hulls, node: ir.Node) -> None:
        self._all, self.node = hulls, node
        self.hulls = [hulls.hull(value) for value in node.inputs]
        self.data = [hull for hull in self.hulls if hull is not None]

    def array(self, index: int) -> NDArray[Any] | None:
        """An input's values where they depend on sizes alone."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return self._all.sizes.value(value)

    def shape(self, index: int = 0) -> Shape:
        """An input's shape."""
        return self._all.sizes.shape(self.node.inputs[index]) or ()

    def out_shape(self, index: int = 0) -> Shape:
        """A result's shape."""
        return self._all.sizes.shape(self.node.outputs[index]) or ()

    def numbers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An attribute of numbers."""
        return list(self.node.attributes[name].as_ints()) if name in self.node.attributes else list(default)

    def number(self, name: str, default: int) -> int:
        """An attribute that is one number."""
        return self.node.attributes[name].as_int() if name in self.node.attributes else default

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        return self.node.attributes[name].as_string() if name in self.node.attributes else default

    def axes(self) -> tuple[int, ...]:
        """The axes that a reduction runs over."""
        rank = len(self.shape())
        given = self.array(1) if len(self.node.inputs) > 1 else None
        axes = self.numbers("axes") or ([] if given is None else given.tolist())
        if not axes and self.number("noop_with_empty_axes", 0):
            return ()
        return tuple(int(axis) % rank for axis in axes) or tuple(range(rank))

    def run(self, *replaced: NDArray[Any]) -> list[NDArray[Any]] | None:
        """The node itself on whole numbers, in place of its first inputs, to see what goes where."""
        rest = [self._all.sizes.value(value) for value in self.node.inputs[len(replaced) :]]
        return self._all.graph.run(self.node, [*replaced, *rest])


Operator = Callable[[Reading], list[Hull] | None]
"""The hulls of a node's results, None where nothing is known of them."""


def _pointwise(read: Reading) -> list[Hull] | None:
    hidden = None
    if read.node.op_type in ("Add", "Mul") and len(read.data) == 1:
        known = read.array(0 if read.hulls[0] is None else 1)
        if known is not None and known.dtype.kind == "f":
            hidden = known <= MASKED if read.node.op_type == "Add" else known == 0
    shape = read.out_shape()
    hull = join([each.to(shape) for each in read.data])
    if hidden is not None and hidden.any():
        hidden = np.broadcast_to(hidden, shape)
        return [Hull(np.where(hidden, NOTHING[0], hull.low), np.where(hidden, NOTHING[1], hull.high), hidden)]
    carried = read.data[0].hidden if len(read.data) == 1 and read.node.op_type in _KEEP_HIDDEN else None
    return [hull if carried is None else Hull(hull.low, hull.high, np.broadcast_to(carried, shape))]


def _where(read: Reading) -> list[Hull] | None:
    condition, shape = read.array(0), read.out_shape()
    sides = [nothing(shape) if hull is None else hull.to(shape) for hull in read.hulls[1:]]
    if condition is None:
        return [join([hull.to(shape) for hull in read.data])]
    low, high = (np.where(condition, getattr(sides[0], p), getattr(sides[1], p)) for p in ("low", "high"))
    return [Hull(np.broadcast_to(low, shape), np.broadcast_to(high, shape))]


def _moving(read: Reading) -> list[Hull] | None:
    """What only moves the elements of its first input."""
    hull = read.hulls[0]
    if hull is None or len(read.data) > 1:
        return None
    parts = [hull.low, hull.high] + ([] if hull.hidden is None else [hull.hidden])
    moved = [read.run(np.ascontiguousarray(part)) for part in parts]
    if any(each is None for each in moved):
        return None
    return [Hull(*(each[index] for each in moved if each is not None)) for index in range(len(read.node.outputs))]


def _concat(read: Reading) -> list[Hull] | None:
    axis = read.number("axis", 0)
    parts = [nothing(read.shape(i)) if hull is None else hull for i, hull in enumerate(read.hulls)]
    return [Hull(np.concatenate([h.low for h in parts], axis), np.concatenate([h.high for h in parts], axis))]


def _scatter(read: Reading) -> list[Hull] | None:
    indices = read.array(1)
    if indices is None:
        return None
    parts = [nothing(read.shape(i)) if read.hulls[i] is None else read.hulls[i] for i in (0, 2)]
    bounds = []
    for name in ("low", "high"):
        arrays = [np.ascontiguousarray(getattr(part, name)) for part in parts]
        done = read._all.graph.run(read.node, [arrays[0], indices, arrays[1]])
        if done is None:
            return None
        bounds.append(done[0])
    return [Hull(*bounds)]


def _reduced(read: Reading) -> list[Hull] | None:
    if read.hulls[0] is None:
        return None
    keepdims = bool(read.number("keepdims", 1))
    return [read.hulls[0].joined(read.axes(), keepdims=keepdims)] if read.axes() else [read.hulls[0]]


def _spread(axes_of: Callable[[Reading], tuple[int, ...]]) -> Operator:
    """What mixes along axes and keeps the shape."""

    def operator(read: Reading) -> list[Hull] | None:
        hull = read.hulls[0]
        if hull is None or len(read.data) > 1:
            return None
        mixed = hull.joined(axes_of(read)).to(hull.low.shape)
        if hull.hidden is None:
            return [mixed] * len(read.node.outputs)
        low, high = np.where(hull.hidden, NOTHING[0], mixed.low), np.where(hull.hidden, NOTHING[1], mixed.high)
        return [Hull(low, high, hull.hidden)]

    return operator


def _one_axis(default: int) -> Callable[[Reading], tuple[int, ...]]:
    return lambda read: (read.number("axis", default) % len(read.shape()),)


def _arg(read: Reading) -> list[Hull] | None:
    hull, axis = read.hulls[0], read.number("axis", 0)
    return None if hull is None else [hull.joined((axis,), keepdims=bool(read.number("keepdims", 1)))]


def _top(read: Reading) -> list[Hull] | None:
    hull = read.hulls[0]
    return None if hull is None else [hull.joined((read.number("axis", -1),))] * 2


def _product(read: Reading) -> list[Hull] | None:
    """A matrix product: rows of the one with columns of the other."""
    left, right = read.hulls[:2]
    if read.node.op_type == "Gemm":
        swaps = (read.number("transA", 0), read.number("transB", 0))
        left, right = (h.moved(np.transpose) if h and swap else h for h, swap in zip((left, right), swaps, strict=True))
    if left is None or right is None:
        side, axis = (right, -2) if left is None else (left, -1)
        assert side is not None
        return [side.joined((side.low.ndim + axis,))] if side.low.ndim > 1 else None
    if min(left.low.ndim, right.low.ndim) < 2:
        return None
    columns = right.joined((right.low.ndim - 2,))
    if left.hidden is None:
        return [join([left.joined((left.low.ndim - 1,)), columns])]
    # Where a weight is zero, what it weighs is not read.
    rows = right.joined((right.low.ndim - 1,)).moved(lambda part: part.swapaxes(-1, -2))
    low = np.where(left.hidden, NOTHING[0], np.minimum(left.low, rows.low)).min(-1, keepdims=True)
    high = np.where(left.hidden, NOTHING[1], np.maximum(left.high, rows.high)).max(-1, keepdims=True)
    return [Hull(low, high)]


def _einsum(read: Reading) -> list[Hull] | None:
    terms, _, out = read.text("equation", "").replace(" ", "").partition("->")
    if not out or "." in out:
        return None
    parts = []
    for letters, hull in zip(terms.split(","), read.hulls, strict=True):
        if hull is not None:
            gone = tuple(i for i, letter in enumerate(letters) if letter not in out)
            kept = [letter for letter in letters if letter in out]
            part = hull.joined(gone, keepdims=False) if gone else Hull(hull.low, hull.high)
            order = sorted(range(len(kept)), key=lambda i, kept=kept: out.index(kept[i]))  # type: ignore[misc]
            sides = [kept[i] for i in order]
            spread = tuple(slice(None) if letter in sides else None for letter in out)
            parts.append(part.moved(lambda p, order=order, spread=spread: p.transpose(order)[spread]))  # type: ignore[misc]
    return [join(parts)]


def _windowed(function: Callable[..., Hull | None]) -> Operator:
    def operator(read: Reading) -> list[Hull] | None:
        if read.hulls[0] is None or len(read.data) > 1:
            return None
        hull = function(read)
        return None if hull is None else [hull] * len(read.node.outputs)

    return operator


POINTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Abs", "Neg", "Exp", "Log", "Reciprocal", "Sign", "Erf", "Mod"),
        *("Sigmoid", "Relu", "LeakyRelu", "PRelu", "Clip", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Mish"),
        *("Softplus", "Softsign", "Elu", "Selu", "Celu", "Swish", "Min", "Max", "Sum", "Mean", "ThresholdedRelu"),
        *("Cast", "CastLike", "Identity", "BatchNormalization", "Dropout", "Floor", "Ceil", "Round", "IsNaN", "IsInf"),
        *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Not", "Xor", "Sin", "Cos", "Atan"),
    }
)
"""Each element of the result reads the elements at its own place only."""

_KEEP_HIDDEN = frozenset({"Identity", "Cast", "CastLike", "Dropout"})

_MOVING = (
    *("Reshape", "Transpose", "Slice", "Gather", "GatherElements", "GatherND", "Split", "Squeeze", "Unsqueeze"),
    *("Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Flatten", "ReverseSequence"),
)

_OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(_MOVING, _moving),
    **{f"Reduce{kind}": _reduced for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare")},
    **{f"Reduce{kind}": _reduced for kind in ("LogSum", "LogSumExp")},
    "Where": _where,
    "Concat": _concat,
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "Softmax": _spread(_one_axis(-1)),
    "LogSoftmax": _spread(_one_axis(-1)),
    "LpNormalization": _spread(_one_axis(-1)),
    "CumSum": _spread(lambda read: (int(np.ravel(axis)[0]) if (axis := read.array(1)) is not None else 0,)),
    "LayerNormalization": _spread(lambda read: tuple(range(len(read.shape())))[read.number("axis", -1) :]),
    "InstanceNormalization": _spread(lambda read: tuple(range(2, len(read.shape())))),
    "GroupNormalization": _spread(lambda read: tuple(range(1, len(read.shape())))),
    "GlobalAveragePool": _windowed(lambda read: read.hulls[0].joined((2, 3))),
    "GlobalMaxPool": _windowed(lambda read: read.hulls[0].joined((2, 3))),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "TopK": _top,
    "MatMul": _product,
    "Gemm": _product,
    "Einsum": _einsum,
    "Pad": _windowed(windows.padded),
    "Conv": _windowed(windows.convolved),
    "ConvTranspose": _windowed(windows.transposed),
    "MaxPool": _windowed(windows.pooled),
    "AveragePool": _windowed(windows.pooled),
    "Resize": _windowed(windows.resized),
}
