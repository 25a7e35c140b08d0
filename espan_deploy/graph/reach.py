"""How far each output pixel sees: the halo that makes tiles exact, from the graph alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from espan_deploy.graph.kinds import Kind, Kinds
from espan_deploy.graph.sizes import SizedGraph


@dataclass(frozen=True)
class Reach:
    """What one output pixel depends on.

    halo: input pixels to each side of its own, or None where it may depend on the whole image: why says then
    which operator does that. scale: output size over input size, None where it is not constant.
    size_multiple: the sizes, and tile positions, that the graph's own rearrangements allow are multiples of this.
    """

    halo: int | None
    scale: Fraction | None
    size_multiple: int = 1
    why: str = ""


@dataclass(frozen=True)
class _Window:
    """Of a value: the input pixels, relative to a pixel's own position, that it depends on; and its resolution."""

    low: Fraction
    high: Fraction
    scale: Fraction


class _UnboundedError(Exception):
    """An operator that may see the whole image."""


_POINTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Abs", "Neg", "Exp", "Log", "Reciprocal", "Sign", "Erf"),
        *("Sigmoid", "Relu", "LeakyRelu", "PRelu", "Clip", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Mish"),
        *("Softplus", "Softsign", "Elu", "Selu", "Celu", "Swish", "Min", "Max", "Sum", "Mean", "Where"),
        *("Cast", "CastLike", "Identity", "BatchNormalization", "Dropout", "Floor", "Ceil", "Round"),
        *("Greater", "Less", "Equal", "And", "Or", "Not"),
    }
)
"""Each output pixel reads the pixels at its own place only."""


def reach(sized: SizedGraph) -> Reach:
    """How far the first output of a graph sees."""
    graph, kinds = sized.model.graph, sized.kinds
    windows: dict[ir.Value, _Window] = {graph.inputs[0]: _Window(Fraction(0), Fraction(0), Fraction(1))}
    multiple = 1
    scale: Fraction | None = None
    try:
        for node in graph:
            if kinds[node.outputs[0]] != Kind.DATA:
                continue
            window = _window(node, windows, kinds)
            multiple = math.lcm(multiple, window.scale.denominator)
            windows.update(dict.fromkeys(node.outputs, window))
    except _UnboundedError as exc:
        return Reach(None, scale, multiple, str(exc))
    out = windows[graph.outputs[0]]
    return Reach(max(0, math.ceil(-out.low), math.ceil(out.high)), out.scale, multiple)


def _window(node: ir.Node, windows: dict[ir.Value, _Window], kinds: Kinds) -> _Window:
    seen = [windows[v] for v in node.inputs if v is not None and v in windows]
    scales = {window.scale for window in seen}
    if len(scales) != 1:
        raise _UnboundedError(f"{node.op_type} {node.name} joins features of different resolution")
    joined = _Window(min(w.low for w in seen), max(w.high for w in seen), scales.pop())
    if node.domain not in ("", "ai.onnx"):
        raise _UnboundedError(f"{node.op_type} {node.name} is not a standard operator")
    if node.op_type in _POINTWISE:
        return joined
    if node.op_type == "Concat":
        return _along_channels(node, joined)
    special = _SPECIAL.get(node.op_type)
    if special is None or any(kinds.get(v, Kind.CONSTANT) == Kind.DATA for v in node.inputs[1:] if v is not None):
        raise _UnboundedError(f"{node.op_type} {node.name} may see the whole image")
    return special(node, joined)


def _grown(window: _Window, before: int, after: int, scale: Fraction | None = None) -> _Window:
    step = 1 / window.scale
    return _Window(window.low - before * step, window.high + after * step, scale or window.scale)


def _conv(node: ir.Node, window: _Window) -> _Window:
    attributes = node.attributes
    weight = node.inputs[1] if node.op_type == "Conv" else None
    kernel = attributes["kernel_shape"].as_ints() if "kernel_shape" in attributes else ()
    if not kernel and weight is not None and weight.const_value is not None:
        kernel = tuple(weight.const_value.shape.numpy()[2:])
    if len(kernel) != 2 or ("auto_pad" in attributes and attributes["auto_pad"].as_string() not in ("", "NOTSET")):
        raise _UnboundedError(f"the window of {node.op_type} {node.name} is not known")
    if any(stride != 1 for stride in (attributes["strides"].as_ints() if "strides" in attributes else ())):
        raise _UnboundedError(f"{node.op_type} {node.name} has a stride, so its result depends on where a tile begins")
    dilations = attributes["dilations"].as_ints() if "dilations" in attributes else (1, 1)
    pads = attributes["pads"].as_ints() if "pads" in attributes else (0, 0, 0, 0)
    before = max(pads[0], pads[1])
    after = max((k - 1) * d - p for k, d, p in zip(kernel, dilations, pads[:2], strict=True))
    return _grown(window, before, after)


def _pad(node: ir.Node, window: _Window) -> _Window:
    widths = _constant(node, 1)
    if len(widths) != 8:
        raise _UnboundedError(f"{node.op_type} {node.name} does not pad an image")
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    if mode != "constant":
        raise _UnboundedError(f"Pad {node.name} mirrors the image at its border, which a tile's border is not")
    step = 1 / window.scale
    # Behind the padding a pixel stands further down and right, so what it depends on lies further up and left.
    shifts = [int(width) for width in widths[2:4]]
    return _Window(window.low - max(shifts) * step, window.high - min(shifts) * step, window.scale)


def _depth_to_space(node: ir.Node, window: _Window) -> _Window:
    return _Window(window.low, window.high, window.scale * node.attributes["blocksize"].as_int())


def _space_to_depth(node: ir.Node, window: _Window) -> _Window:
    block = node.attributes["blocksize"].as_int()
    return _grown(window, 0, block - 1, window.scale / block)


def _resize(node: ir.Node, window: _Window) -> _Window:
    scales = _constant(node, 2)
    whole = len(scales) == 4 and scales[0] == scales[1] == 1 and scales[2] == scales[3] and scales[2] >= 1
    if not whole or scales[2] != int(scales[2]):
        raise _UnboundedError(f"Resize {node.name} is to a size, not by a whole factor")
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    place = node.attributes.get("coordinate_transformation_mode")
    if place is not None and place.as_string() == "align_corners":
        raise _UnboundedError(f"Resize {node.name} aligns corners, so every pixel depends on the image's size")
    support = {"nearest": 0, "linear": 1, "cubic": 2}[mode]
    return _grown(window, support, support, window.scale * int(scales[2]))


def _channels_only(node: ir.Node, window: _Window) -> _Window:
    axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else _constant(node, 1)
    if any(int(axis) not in (1, -3) for axis in axes) or not len(axes):
        raise _UnboundedError(f"{node.op_type} {node.name} may see the whole image")
    return window


def _slice(node: ir.Node, window: _Window) -> _Window:
    axes = _constant(node, 3) if len(node.inputs) > 3 else np.arange(len(_constant(node, 1)))
    if all(int(axis) in (0, 1, -3, -4) for axis in axes):
        return window
    starts = _constant(node, 1)
    shift = max((int(s) for s, axis in zip(starts, axes, strict=True) if int(axis) in (2, 3, -1, -2)), default=0)
    if shift < 0:
        raise _UnboundedError(f"Slice {node.name} starts from the image's end")
    return _grown(window, 0, shift)


def _along_channels(node: ir.Node, window: _Window) -> _Window:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else None
    if axis not in (1, -3):
        raise _UnboundedError(f"{node.op_type} {node.name} may see the whole image")
    return window


def _constant(node: ir.Node, index: int) -> NDArray[Any]:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise _UnboundedError(f"{node.op_type} {node.name} depends on the image's size")
    constant: NDArray[Any] = tensor.numpy()
    return constant


_SPECIAL = {
    "Conv": _conv,
    "MaxPool": _conv,
    "AveragePool": _conv,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
    "ReduceMean": _channels_only,
    "ReduceSum": _channels_only,
    "ReduceMax": _channels_only,
    "ReduceL2": _channels_only,
    "Slice": _slice,
    "Gather": _along_channels,
    "Split": _along_channels,
    "Softmax": _along_channels,
}
