"""Pixels in the graph: scale, clip, round and layout become part of the ONNX model; bytes go in and come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from espan_deploy.description import METADATA_KEY, ModelDescription, Pixels
from espan_deploy.errors import ExportError

BYTE_MAX = 255.0

TENSOR_TYPES: dict[Pixels, int] = {
    "uint8": TensorProto.UINT8,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
}

FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)

LAYOUT_OPS = ("DepthToSpace", "Reshape", "Transpose", "Identity")
"""Operators that only move values: a factor behind them may as well stand in front."""


GUARD = "guard"
"""Name of the second output of a guarded model."""


def with_pixels(
    model: onnx.ModelProto, description: ModelDescription, pixels: Pixels, *, guard: bool = False
) -> onnx.ModelProto:
    """A copy of a model whose input and output are pixels of the wanted type.

    model: one input and one output, (N, 3, H, W) float32 or float16 in [0, value_range].
    pixels: "uint8" is (N, H, W, 3) RGB in [0, 255], clipped and rounded to nearest (half to even); "float32" and
        "float16" keep layout and range, and cast where the model computes in the other type.
    guard: with "uint8", add a second output "guard", (N,) float32: the mean of each image before it is clipped.
        It is non-finite wherever any pixel is, which bytes alone cannot say.

    The factors value_range / 255 and 255 / value_range go into the weights of the first and last convolutions where
    those alone see the input and the output, so they cost nothing; elsewhere, and where float16 weights would
    underflow, they are multiplications. In float32 the result is within 0.01 of a level of scaling outside of the
    graph, so that bytes differ only where the exact value lies that close to a half.

    The uint8 input is cast by the very first node and the output by the very last: TensorRT's parser asks for it.
    The description in the metadata, if there is one, is updated; other metadata is kept.
    Raises ExportError where the model has other inputs or outputs, or has bytes already.
    """
    if description.pixels == pixels and description.pixels == "uint8":
        return _copy(model)
    result = _copy(model)
    graph = result.graph
    source, target = _float_ends(graph)
    if pixels == "uint8":
        _wrap_bytes(graph, source, target, description)
        if guard:
            _add_guard(graph)
        description = replace(description, color_order="RGB")
    else:
        _wrap_floats(graph, source, target, TENSOR_TYPES[pixels])
    del graph.value_info[:]  # its shapes are of the old ends; runtimes infer them again
    _update_metadata(result, replace(description, pixels=pixels))
    onnx.checker.check_model(result)
    return result


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def _float_ends(graph: onnx.GraphProto) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ExportError(
            f"the model has {len(inputs)} inputs and {len(graph.output)} outputs, expected one image in and one out"
        )
    for value in (inputs[0], graph.output[0]):
        tensor = value.type.tensor_type
        if tensor.elem_type not in FLOAT_TYPES or len(tensor.shape.dim) != 4:
            raise ExportError(
                f"the model's {value.name} is {TensorProto.DataType.Name(tensor.elem_type)} with "
                f"{len(tensor.shape.dim)} dimensions, expected float32 or float16 (N, 3, H, W)",
                hint="give the model as it was before its pixels were changed",
            )
    return inputs[0], graph.output[0]


def _wrap_bytes(
    graph: onnx.GraphProto,
    source: onnx.ValueInfoProto,
    target: onnx.ValueInfoProto,
    description: ModelDescription,
) -> None:
    inner = _rename(graph, source.name, "pixels_in")
    outer = _rename(graph, target.name, "pixels_out")
    in_type = source.type.tensor_type.elem_type
    out_type = target.type.tensor_type.elem_type
    swapped = description.color_order == "BGR"
    head = _Chain(graph, source.name, "pixels_in", in_type)
    tail = _Chain(graph, outer, "pixels_out", out_type)

    to_range = description.value_range / BYTE_MAX
    head.add("Cast", to=in_type)
    head.add("Transpose", perm=[0, 3, 1, 2])
    if swapped:
        head.swap_channels()
    if to_range != 1.0 and not (in_type == TensorProto.FLOAT and _scale_first_convs(graph, inner, to_range)):
        head.scale(to_range)

    if to_range != 1.0 and not _scale_last_conv(graph, outer, 1.0 / to_range):
        tail.scale(1.0 / to_range)
    if swapped:
        tail.swap_channels()
    tail.clip(0.0, BYTE_MAX)
    tail.add("Round")
    tail.add("Transpose", perm=[0, 2, 3, 1])
    tail.add("Cast", to=TensorProto.UINT8)

    head.end(inner)
    tail.end(target.name)
    _splice(graph, head, tail)
    for value in (source, target):
        dims = value.type.tensor_type.shape.dim
        channels, height, width = (_copy_dim(dims[axis]) for axis in (1, 2, 3))
        for axis, dim in zip((1, 2, 3), (height, width, channels), strict=True):
            dims[axis].CopyFrom(dim)
        value.type.tensor_type.elem_type = TensorProto.UINT8


def _add_guard(graph: onnx.GraphProto) -> None:
    clip = next(node for node in reversed(graph.node) if node.op_type == "Clip")
    axes = numpy_helper.from_array(np.array([1, 2, 3], np.int64), f"{GUARD}_axes")
    graph.initializer.append(axes)
    # float32: the sum of a large float16 image would overflow by itself.
    position = len(graph.node) - 4
    for node in (
        helper.make_node("Cast", [clip.input[0]], [f"{GUARD}_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", [f"{GUARD}_float", axes.name], [GUARD], keepdims=0),
    ):
        graph.node.insert(position, node)
        position += 1
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    graph.output.append(
        helper.make_tensor_value_info(GUARD, TensorProto.FLOAT, [batch.dim_param or batch.dim_value or None])
    )


def _wrap_floats(graph: onnx.GraphProto, source: onnx.ValueInfoProto, target: onnx.ValueInfoProto, wanted: int) -> None:
    for value, is_input in ((source, True), (target, False)):
        computed = value.type.tensor_type.elem_type
        if computed == wanted:
            continue
        inner = _rename(graph, value.name, "pixels_in" if is_input else "pixels_out")
        chain = _Chain(graph, value.name if is_input else inner, inner, computed)
        chain.add("Cast", to=computed if is_input else wanted)
        chain.end(inner if is_input else value.name)
        empty = _Chain(graph, "", "", computed)
        _splice(graph, *((chain, empty) if is_input else (empty, chain)))
        value.type.tensor_type.elem_type = wanted


class _Chain:
    """Nodes one after the other, to be put at an end of a graph."""

    def __init__(self, graph: onnx.GraphProto, start: str, prefix: str, dtype: int) -> None:
        self.graph, self.prefix = graph, prefix
        self.value = start
        self.dtype = helper.tensor_dtype_to_np_dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op_type: str, *constants: NDArray[Any], **attributes: Any) -> None:
        name = f"{self.prefix}_{len(self.nodes)}_{op_type.lower()}"
        inputs = [self.value]
        for index, constant in enumerate(constants):
            inputs.append(f"{name}_{index}")
            self.graph.initializer.append(numpy_helper.from_array(constant, inputs[-1]))
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        self.value = name

    def scale(self, factor: float) -> None:
        self.add("Mul", np.array(factor, self.dtype))

    def clip(self, low: float, high: float) -> None:
        self.add("Clip", np.array(low, self.dtype), np.array(high, self.dtype))

    def swap_channels(self) -> None:
        self.add("Gather", np.array([2, 1, 0], np.int64), axis=1)

    def end(self, name: str) -> None:
        self.nodes[-1].output[0] = name


def _splice(graph: onnx.GraphProto, head: _Chain, tail: _Chain) -> None:
    middle = list(graph.node)
    del graph.node[:]
    graph.node.extend([*head.nodes, *middle, *tail.nodes])


def _rename(graph: onnx.GraphProto, old: str, prefix: str) -> str:
    """Give a value inside the graph another name, so that the graph's own input or output may keep it."""
    new = f"{prefix}_{old}"

    def visit(nodes: Iterator[onnx.NodeProto]) -> None:
        for node in nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == old:
                        names[index] = new
            for attribute in node.attribute:
                visit(iter(attribute.g.node))

    visit(iter(graph.node))
    return new


def _scale_first_convs(graph: onnx.GraphProto, value: str, factor: float) -> bool:
    """Fold a factor on ``value`` into the convolutions that read it; False where something else reads it too."""
    readers = [node for node in graph.node if value in node.input]
    if not readers or any(node.op_type != "Conv" or list(node.input).count(value) != 1 for node in readers):
        return False
    if any(node.input[0] != value or _constant(graph, node.input[1]) is None for node in readers):
        return False
    for node in readers:
        _replace_constant(graph, node, 1, lambda weight: weight * factor)
    return True


def _scale_last_conv(graph: onnx.GraphProto, value: str, factor: float) -> bool:
    """Fold a factor on ``value`` into the convolution that made it; False where there is none of its own."""
    while True:
        producer = next((node for node in graph.node if value in node.output), None)
        readers = sum(list(node.input).count(value) for node in graph.node)
        if producer is None or readers > 1:
            return False
        if producer.op_type == "Conv":
            break
        if producer.op_type not in LAYOUT_OPS:
            return False
        value = producer.input[0]
        if sum(list(node.input).count(value) for node in graph.node) != 1:
            return False
    indices = [index for index in (1, 2) if len(producer.input) > index and producer.input[index]]
    constants = [_constant(graph, producer.input[index]) for index in indices]
    if any(constant is None or not _fits(constant, factor) for constant in constants):
        return False
    for index in indices:
        _replace_constant(graph, producer, index, lambda weight: weight * factor)
    return True


def _fits(values: NDArray[Any], factor: float) -> bool:
    limit = float(np.finfo(values.dtype).max)
    return float(np.abs(values.astype(np.float64)).max(initial=0.0)) * factor < limit


def _constant(graph: onnx.GraphProto, name: str) -> NDArray[Any] | None:
    for tensor in graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    for node in graph.node:
        if name in node.output and node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
    return None


def _replace_constant(
    graph: onnx.GraphProto, node: onnx.NodeProto, index: int, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    """Let a node read a changed copy of its constant; the constant itself goes when nothing else reads it."""
    name = node.input[index]
    values = _constant(graph, name)
    assert values is not None
    changed = change(values.astype(np.float64)).astype(values.dtype)
    # The suffix counts up: two convolutions may share one constant.
    taken = {tensor.name for tensor in graph.initializer}
    new = next(f"{name}.pixels{n or ''}" for n in range(len(taken) + 1) if f"{name}.pixels{n or ''}" not in taken)
    graph.initializer.append(numpy_helper.from_array(changed, new))
    node.input[index] = new
    if not any(name in other.input for other in graph.node):
        for position, tensor in enumerate(graph.initializer):
            if tensor.name == name:
                del graph.initializer[position]
                break


def _copy_dim(dim: Any) -> Any:
    copy = type(dim)()
    copy.CopyFrom(dim)
    return copy


def _update_metadata(model: onnx.ModelProto, description: ModelDescription) -> None:
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = description.to_metadata()[METADATA_KEY]
            return
