"""A graph whose batch was fixed when it was exported, with any batch: PyTorch's exporters fix it at one by default."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

BATCH = "batch"


def with_free_batch(model: ir.Model) -> ir.Model:
    """A copy that takes any batch, as far as shapes that are written down can tell.

    Whether its results are right, only running it can say: a batch may be hidden in what a graph computes.
    """
    model = model.clone()
    graph = model.graph
    image = graph.inputs[0]
    assert image.shape is not None
    fixed = image.shape[0]
    image.shape = ir.Shape([BATCH, *image.shape.dims[1:]])
    for node in graph:
        if node.op_type == "Reshape":
            _free_reshape(graph, node, fixed)
        for output in node.outputs:
            output.shape = None
    return model


def _free_reshape(graph: ir.Graph, node: ir.Node, fixed: int | ir.SymbolicDim) -> None:
    """Let a reshape whose first side is the batch copy it instead."""
    shape = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
    if shape is None or ("allowzero" in node.attributes and node.attributes["allowzero"].as_int()):
        return
    sides = shape.numpy().copy()
    if len(sides) < 2 or sides[0] != fixed:
        return
    sides[0] = 0
    constant = ir.node("Constant", [], {"value": ir.AttrTensor("value", ir.tensor(np.asarray(sides, np.int64)))})
    graph.insert_before(node, constant)
    constant.outputs[0].const_value = ir.tensor(np.asarray(sides, np.int64))
    constant.outputs[0].type, constant.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(sides)])
    node.replace_input_with(1, constant.outputs[0])
