"""Convolutions that read bytes: powers of two keep their weights out of FP16's subnormals, at no loss."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYOUT_OPS = ("Transpose", "Gather", "Identity")

SHIFT = 8
"""A byte times 2**-8 is exact in FP16 and lies in [0, 1)."""

HALF_TINY = float(np.finfo(np.float16).tiny)
WEIGHT_LIMIT = 1024.0
"""No shifted weight may come near FP16's end."""


def rescale_byte_fed_convolutions(graph: onnx.GraphProto, kept: set[str]) -> bool:
    """Move a factor 2**8 from the bytes to the weights of the convolutions that read them.

    With 1/255 folded into them, such weights are so small that FP16 would flush many to subnormals. The factor is
    a power of two, so pixels and weights stay exact. Done where every reader is a convolution that turns to FP16
    and has subnormal weights; returns whether it was.
    """
    bytes_in = {v.name for v in graph.input if v.type.tensor_type.elem_type == TensorProto.UINT8}
    cast = next((n for n in graph.node if n.op_type == "Cast" and n.input[0] in bytes_in), None)
    if cast is None or cast.name in kept:
        return False
    value = cast.output[0]
    while True:
        readers = [node for node in graph.node if value in node.input]
        if len(readers) != 1 or readers[0].op_type not in LAYOUT_OPS or readers[0].input[0] != value:
            break
        value = readers[0].output[0]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if not readers or not all(
        _is_tiny_convolution(node, value, constants) and node.name not in kept for node in readers
    ):
        return False
    shifted = f"{value}_shifted"
    factor = f"{value}_shift"
    graph.initializer.append(numpy_helper.from_array(np.array(2.0**-SHIFT, np.float32), factor))
    for node in readers:
        weight = f"{node.input[1]}.shifted"
        if weight not in constants:
            values = numpy_helper.to_array(constants[node.input[1]]) * np.float32(2.0**SHIFT)
            constants[weight] = numpy_helper.from_array(values, weight)
            graph.initializer.append(constants[weight])
        node.input[0], node.input[1] = shifted, weight
    position = next(i for i, node in enumerate(graph.node) if value in node.output) + 1
    graph.node.insert(position, helper.make_node("Mul", [value, factor], [shifted], name=f"{shifted}_mul"))
    return True


def _is_tiny_convolution(node: onnx.NodeProto, value: str, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Conv" or list(node.input).count(value) != 1 or node.input[1] not in constants:
        return False
    weights = np.abs(numpy_helper.to_array(constants[node.input[1]]))
    subnormal = bool(((weights > 0) & (weights < HALF_TINY)).any())
    return subnormal and float(weights.max(initial=0.0)) * 2.0**SHIFT < WEIGHT_LIMIT
