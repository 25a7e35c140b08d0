"""Putting a convolution in a region's place."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from espan_deploy.fold.algebra import Array
from espan_deploy.fold.evaluate import initializer
from espan_deploy.fold.identify import Identified
from espan_deploy.fold.regions import Region

Attributes = Mapping[str, int | list[int]]


def replace_region(graph: ir.Graph, region: Region, found: Identified, name: str) -> None:
    """Compute the region's target by the terms found, in place. name: what the new nodes are called after."""
    before = region.target.producer()
    assert before is not None
    new: list[ir.Node] = []

    def add(op_type: str, inputs: list[ir.Value], channels: int, attributes: Attributes | None = None) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{name}.{op_type.lower()}{len(new)}")
        node.metadata_props.update(before.metadata_props)
        output = node.outputs[0]
        output.name = node.name
        output.type = region.target.type
        output.shape = _with_channels(region.target, channels)
        new.append(node)
        return output

    summands: list[ir.Value] = []
    bias: Array | None = found.bias if found.bias.any() else None
    for index, term in enumerate(found.terms):
        sources, convolution = [region.sources[i] for i in term.sources], term.convolution
        if convolution.is_identity:
            summands.append(sources[0])
            continue
        out_channels, in_per_group = convolution.weight.shape[:2]
        x = sources[0]
        if len(sources) > 1:
            x = add("Concat", sources, in_per_group, {"axis": 1})
        inputs = [x, initializer(graph, convolution.weight, f"{name}.weight{index or ''}")]
        if bias is not None:
            inputs.append(initializer(graph, bias, f"{name}.bias"))
            bias = None
        attributes: Attributes = {
            "kernel_shape": list(convolution.weight.shape[2:]),
            "pads": list(convolution.pads),
            "strides": [1, 1],
            "dilations": list(convolution.dilation),
            "group": convolution.groups,
        }
        summands.append(add("Conv", inputs, out_channels, attributes))
    if bias is not None:
        summands.append(initializer(graph, bias[None, :, None, None], f"{name}.bias"))
    result = summands[0]
    for summand in summands[1:]:
        result = add("Add", [result, summand], len(found.bias))
    graph.insert_before(before, new)
    name_kept = region.target.name if region.target.is_graph_output() else None
    region.target.replace_all_uses_with(result, replace_graph_outputs=True)
    if name_kept is not None:
        region.target.name, result.name = f"{name_kept}.folded", name_kept


def _with_channels(like: ir.Value, channels: int) -> ir.Shape | None:
    return None if like.shape is None else ir.Shape([like.shape[0], channels, *like.shape[2:]])


def drop_zero_biases(graph: ir.Graph) -> None:
    """Take away, in place, the biases of convolutions that are all zero: exporters write them for layers without."""
    for node in graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        if bias is not None and bias.const_value is not None and not bias.const_value.numpy().any():
            node.resize_inputs(2)
