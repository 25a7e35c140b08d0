"""What exporters write in a roundabout way, in plain operators: the same results, and less for everyone to know."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass, ShapeInferencePass

from espan_deploy.graph.selective_scan import lower_scans


def lowered(model: ir.Model) -> ir.Model:
    """A copy of the model without CastLike, without our own operator and, where sizes are known, without sequences.

    Shapes and types are inferred where the file leaves them out. Names become unique: PyTorch's exporter calls the
    buffer ``mean`` and the first result of ``mean()`` alike, and what is read back from a file goes by names.
    """
    model = model.clone()
    lower_scans(model)
    NameFixPass()(model)
    if any(output.shape is None or output.type is None for node in model.graph for output in node.outputs):
        ShapeInferencePass()(model)
    for node in list(model.graph):
        if node.op_type == "CastLike":
            _lower_cast_like(model.graph, node)
        elif node.op_type == "SequenceAt":
            _lower_sequence_at(model.graph, node)
    RemoveUnusedNodesPass()(model)
    return model


def _lower_cast_like(graph: ir.Graph, node: ir.Node) -> None:
    """A cast to a type that is known; nothing, where it is the type already."""
    value, like = node.inputs
    assert value is not None
    if like is None or like.dtype is None:
        return
    if value.dtype == like.dtype:
        node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=not value.is_graph_input())
        return
    _replace(graph, node, ir.node("Cast", [value], {"to": ir.AttrInt64("to", int(like.dtype))}))


def _lower_sequence_at(graph: ir.Graph, node: ir.Node) -> None:
    """A slice, where the sequence is a tensor split into pieces of known sizes."""
    sequence, position = node.inputs
    split = None if sequence is None else sequence.producer()
    if split is None or split.op_type != "SplitToSequence" or position is None:
        return
    keeps = split.attributes.get("keepdims")
    sizes = split.inputs[1] if len(split.inputs) > 1 else None
    tensor, index, lengths = split.inputs[0], ir.convenience.get_const_tensor(position), None
    if sizes is not None:
        lengths = ir.convenience.get_const_tensor(sizes)
    if tensor is None or index is None or lengths is None or (keeps is not None and not keeps.as_int()):
        return
    at, pieces = int(index.numpy()), lengths.numpy()
    if at < 0:
        return
    start, end = (at * int(pieces), (at + 1) * int(pieces)) if pieces.ndim == 0 else _extent(pieces.tolist(), at)
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    bounds = [ir.tensor([number], dtype=ir.DataType.INT64) for number in (start, end, axis)]
    constants = [ir.node("Constant", [], {"value": ir.AttrTensor("value", bound)}) for bound in bounds]
    for constant, bound in zip(constants, bounds, strict=True):
        constant.outputs[0].const_value = bound
        constant.outputs[0].type, constant.outputs[0].shape = ir.TensorType(bound.dtype), ir.Shape([1])
    graph.insert_before(node, constants)
    _replace(graph, node, ir.node("Slice", [tensor, *(constant.outputs[0] for constant in constants)]))


def _extent(lengths: list[int], at: int) -> tuple[int, int]:
    return sum(lengths[:at]), sum(lengths[: at + 1])


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put a node of one output in another's place, under its name."""
    new.name = old.name
    new.metadata_props.update(old.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, old, [old], [new], old.outputs, new.outputs)
