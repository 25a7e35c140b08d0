"""A 1x1 convolution over a concatenation, as one convolution for each of its sources and their sum.

The sources have ranges of their own. Apart, each is quantised by its own scale, or stays in float beside the others,
and an engine that cannot concatenate codes of different scales need not fall back to float (OpenVINO does).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def with_split_concatenations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 graph without 1x1 convolutions over concatenated feature maps, up to rounding the same."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    widths = _channels(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    concatenations = {node.output[0]: node for node in graph.node if node.op_type == "Concat"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        source = concatenations.get(node.input[0]) if node.op_type == "Conv" else None
        sizes = [widths.get(name) for name in source.input] if source is not None else []
        if source is None or not _splittable(node, source, constants) or None in sizes:
            nodes.append(node)
            continue
        nodes += _split(graph, node, source, constants, [size for size in sizes if size is not None])
    del graph.node[:]
    graph.node.extend(_read(nodes, graph))
    _drop_unread(graph)
    return result


def _splittable(node: onnx.NodeProto, source: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    axis = next(a.i for a in source.attribute if a.name == "axis")
    weight = constants.get(node.input[1])
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    biased = len(node.input) > 2 and node.input[2]
    return (
        axis in (1, -3)
        and groups == 1
        and weight is not None
        and weight.shape[2:] == (1, 1)
        and (not biased or node.input[2] in constants)
    )


def _split(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    source: onnx.NodeProto,
    constants: dict[str, np.ndarray],
    sizes: list[int],
) -> list[onnx.NodeProto]:
    """The convolutions, the first with the bias, and their sums; the last gives what the node gave."""
    weights = np.split(constants[node.input[1]], np.cumsum(sizes)[:-1], axis=1)
    made: list[onnx.NodeProto] = []
    total = ""
    for index, (value, weight) in enumerate(zip(source.input, weights, strict=True)):
        name = f"{node.name}.{index}"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), f"{name}.weight"))
        inputs = [value, f"{name}.weight", *(node.input[2:] if index == 0 else ())]
        part = helper.make_node("Conv", inputs, [name], name=name)
        part.attribute.extend(node.attribute)
        made.append(part)
        if total:
            output = node.output[0] if index == len(sizes) - 1 else f"{name}.sum"
            made.append(helper.make_node("Add", [total, name], [output], name=f"{name}.add"))
            total = output
        else:
            total = name
    return made


def _channels(model: onnx.ModelProto) -> dict[str, int]:
    """Feature map -> how many channels it has, where that is known."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4 and dims[1].HasField("dim_value"):
            found[value.name] = dims[1].dim_value
    return found


def _read(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes without the concatenations that nothing reads any more."""
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    return [node for node in nodes if node.op_type != "Concat" or node.output[0] in read]


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
