"""FP16 on a CPU, faithfully: every FP16 value of a graph is rounded to FP16, which runtimes there leave out.

ONNX Runtime's CPU kernels compute most operators in FP32 and drop the roundings between them: a value of 1e6 in
the middle of an FP16 graph passes where a GPU makes it infinite. Casts that stand in an FP32 graph are kept, so
they do the rounding here. Each operator still accumulates in FP32, as tensor cores do.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from espan_deploy.precision.half import value_types

EXACT_OPS = (
    "Clip",
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Neg",
    "Pad",
    "Relu",
    "Reshape",
    "Round",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
"""Operators whose results need no rounding, being among their inputs, or integers."""


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """An FP32 graph that computes what an FP16 graph does where FP16 is real. Inputs and outputs keep their types."""
    types = value_types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    halves = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    read_as: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        if value.name in halves:
            read_as[value.name] = f"{value.name}__full"
            nodes.append(_cast(value.name, read_as[value.name], TensorProto.FLOAT))
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = read_as.get(name, name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in halves:
                continue
            if name in outputs:
                node.output[index] = f"{name}__exact"
                nodes.append(_cast(node.output[index], name, TensorProto.FLOAT16))
                read_as[name] = f"{name}__full"
                nodes.append(_cast(name, read_as[name], TensorProto.FLOAT))
            elif node.op_type not in EXACT_OPS:
                node.output[index] = f"{name}__exact"
                nodes.append(_cast(node.output[index], f"{name}__half", TensorProto.FLOAT16))
                nodes.append(_cast(f"{name}__half", name, TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}__cast", to=to)
