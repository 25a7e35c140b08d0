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
    for output in graph.outputs:
        output.shape = ir.Shape([BATCH, "channels", "output height", "output width"])
    return model


def _free_reshape(graph: ir.Graph, node: ir.Node, fixed: int | ir.SymbolicDim) -> None:
    """Let a reshape whose first side is the batch copy it instead, which is what a zero asks for."""
    shape = node.inputs[1]
    if shape is None:
        return
    parts = [shape]
    made = shape.producer()
    if made is not None and made.op_type == "Concat":
        parts = [part for part in made.inputs if part is not None]
    first = ir.convenience.get_const_tensor(parts[0])
    if first is None or first.size < (2 if len(parts) == 1 else 1) or first.numpy().flat[0] != fixed:
        return
    sides = first.numpy().copy()
    if not sides.all():
        return  # a zero that is meant
    sides[0] = 0
    node.attributes.pop("allowzero", None)
    constant = ir.node("Constant", [], {"value": ir.AttrTensor("value", ir.tensor(np.asarray(sides, np.int64)))})
    graph.insert_before(node, constant)
    freed = constant.outputs[0]
    freed.const_value = ir.tensor(np.asarray(sides, np.int64))
    freed.type, freed.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(sides)])
    if len(parts) > 1:
        joined = ir.node("Concat", [freed, *parts[1:]], {"axis": 0})
        graph.insert_before(node, joined)
        freed = joined.outputs[0]
        freed.type, freed.shape = shape.type, shape.shape
    node.replace_input_with(1, freed)
