"""Graphs that quantise their values: recognised, and as what they stand for, in floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from espan_deploy.errors import ExportError
from espan_deploy.products import PRODUCTS

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"

OPERATORS_ON_CODES = frozenset(
    {
        *("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearConcat", "QGemm"),
        *("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QLinearLeakyRelu", "QLinearGlobalAveragePool"),
    }
)
"""Of the other form of quantised graphs, in which operators compute with codes themselves: no engine but the one that
made it reads it."""


def is_quantised(graph: ir.Graph) -> bool:
    """Whether a convolution or matrix product reads what was quantised, constants apart.

    Raises ExportError for a graph whose operators compute with codes themselves.
    """
    for node in graph:
        if node.op_type in OPERATORS_ON_CODES:
            raise ExportError(
                f"the graph computes with codes, by {node.op_type} {node.name}",
                hint="quantise with QuantizeLinear and DequantizeLinear around float operators (QuantFormat.QDQ)",
            )
    read = (node.inputs[0] for node in graph if node.op_type in PRODUCTS)
    return any(value is not None and _dequantises(value.producer()) for value in read)


def _dequantises(node: ir.Node | None) -> bool:
    if node is None or node.inputs[0] is None:
        return False
    return node.op_type == DEQUANTISE and node.inputs[0].const_value is None


def without_quantisation(model: ir.Model) -> ir.Model:
    """A copy in floats: weights as their codes stand for them, and no other value rounded.

    Its structure is that of the network that was quantised, so cost and reach are read from it, and its results are
    what the quantised ones are held against. Raises ExportError where the weights' codes cannot be read.
    """
    model = model.clone()
    graph = model.graph
    for node in list(graph):
        if node.op_type not in (QUANTISE, DEQUANTISE):
            continue
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        if node.op_type == DEQUANTISE and source.const_value is not None:
            values = _dequantised(node)
            constant = ir.Value(name=result.name, const_value=ir.tensor(values, name=result.name))
            constant.type, constant.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(values.shape)
            source = constant
        elif node.op_type == QUANTISE:
            _forget_codes(result)
        result.replace_all_uses_with(source, replace_graph_outputs=not source.is_graph_input())
        graph.remove(node, safe=True)
        if source.name == result.name:
            graph.register_initializer(source)
    RemoveUnusedNodesPass()(model)
    return model


def _forget_codes(codes: ir.Value) -> None:
    """What only moves codes moves floats now."""
    pending = [codes]
    while pending:
        for use in pending.pop().uses():
            if use.node.op_type != DEQUANTISE:
                for output in use.node.outputs:
                    if output.dtype is not None and not output.dtype.is_floating_point():
                        output.type = ir.TensorType(ir.DataType.FLOAT)
                        pending.append(output)


def _dequantised(node: ir.Node) -> NDArray[np.float32]:
    """What a constant's codes stand for."""
    codes, scale = _constant(node, 0), _constant(node, 1)
    zero = _constant(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0

    def along(part: NDArray[Any]) -> NDArray[Any]:
        """In a shape that is broadcast to the codes'."""
        if block:
            return part.repeat(block, axis)
        return (
            part.reshape([-1 if a == axis % codes.ndim else 1 for a in range(codes.ndim)]) if part.ndim == 1 else part
        )

    offset = 0 if zero is None else along(zero).astype(np.int64)
    values: NDArray[np.float32] = ((codes.astype(np.int64) - offset) * along(scale)).astype(np.float32)
    return values


def _constant(node: ir.Node, index: int) -> NDArray[Any]:
    value = node.inputs[index]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise ExportError(
            f"{node.op_type} {node.name} takes a scale that is computed", hint="quantise it again with constant scales"
        )
    return tensor.numpy()
