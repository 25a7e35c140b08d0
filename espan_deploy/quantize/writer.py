"""The quantised network as ONNX with explicit QuantizeLinear and DequantizeLinear.

For each feature map that quantised convolutions read::

    value -> Mul (1 / smoothing, (1, C, 1, 1); left out where it is all ones)
          -> QuantizeLinear (one float32 scale; one uint8 zero point, or int8 0) -> DequantizeLinear
          -> Conv, whose weights come from int8 initialisers through DequantizeLinear (axis 0, float32 scales (O,))

The bias stays float32. Nothing else of the graph changes: what is between convolutions stays float for the engine to
fuse. A quantised weight keeps the name that it had in float, and its codes and scale are named after it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper

from espan_deploy.quantize.arithmetic import reading_shifts
from espan_deploy.quantize.scheme import QuantizedValue, QuantizedWeight, Scheme

ZERO_POINT_TYPES = {"unsigned": np.uint8, "signed": np.int8}


def quantized_graph(model: onnx.ModelProto, scheme: Scheme) -> onnx.ModelProto:
    """A copy of a float32 graph with its convolutions in INT8 as the scheme has it; metadata is kept as it is."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes = list(graph.node)
    del graph.node[:]
    read_as: dict[tuple[str, int], str] = {}
    shared = _shared_constants(nodes)
    for node in nodes:
        weight = scheme.weights.get(node.name) if node.op_type == "Conv" else None
        if weight is not None:
            value, readings = node.input[0], weight.readings
            if (value, readings) not in read_as:
                read_as[value, readings] = _quantize_value(graph, value, scheme.values[value], readings)
            name = f"{node.input[1]}.{node.name}" if node.input[1] in shared else node.input[1]
            inputs = [read_as[value, readings], name, f"{name}.bias"]
            _drop_constant(graph, name)
            _dequantize_weight(graph, name, weight)
            graph.initializer.append(numpy_helper.from_array(weight.bias.astype(np.float32), inputs[2]))
            del node.input[:]
            node.input.extend(inputs)
        graph.node.append(node)
    _drop_unread(graph)
    return result


def _quantize_value(graph: onnx.GraphProto, value: str, how: QuantizedValue, readings: int) -> str:
    """The name of the feature map once it went through codes, of its readings where there are several."""
    source, scale, zero_point = value, f"{value}.scale", f"{value}.zero_point"
    made = {tensor.name for tensor in graph.initializer}
    if not np.all(how.smoothing == 1.0):
        source = f"{value}.smoothed"
    if scale not in made:
        zero = np.array(how.codes.zero_point, ZERO_POINT_TYPES[how.codes.signs])
        graph.initializer.append(numpy_helper.from_array(np.array(how.codes.scale, np.float32), scale))
        graph.initializer.append(numpy_helper.from_array(zero, zero_point))
        if source != value:
            factor = (1.0 / how.smoothing).astype(np.float32).reshape(1, -1, 1, 1)
            graph.initializer.append(numpy_helper.from_array(factor, f"{value}.smoothing"))
            graph.node.append(helper.make_node("Mul", [value, f"{value}.smoothing"], [source], name=f"{source}.mul"))
    results = []
    for index, shift in enumerate(reading_shifts(readings)):
        name, read = f"{value}.{index}" if readings > 1 else value, source
        if shift:
            read = f"{name}.shifted"
            graph.initializer.append(
                numpy_helper.from_array(np.array(shift * how.codes.scale, np.float32), f"{name}.shift")
            )
            graph.node.append(helper.make_node("Add", [source, f"{name}.shift"], [read], name=f"{read}.add"))
        codes, result = f"{name}.codes", f"{name}.dequantized"
        nodes = (
            ("QuantizeLinear", [read, scale, zero_point], codes),
            ("DequantizeLinear", [codes, scale, zero_point], result),
        )
        for (kind, inputs, output), verb in zip(nodes, ("quantize", "dequantize"), strict=True):
            graph.node.append(helper.make_node(kind, inputs, [output], name=f"{name}.{verb}"))
        results.append(result)
    if readings == 1:
        return results[0]
    graph.node.append(helper.make_node("Concat", results, [f"{value}.readings"], name=f"{value}.readings", axis=1))
    return f"{value}.readings"


def _dequantize_weight(graph: onnx.GraphProto, name: str, weight: QuantizedWeight) -> None:
    """Let a value of the float weight's name come from codes."""
    codes, scale = f"{name}.codes", f"{name}.scale"
    graph.initializer.append(numpy_helper.from_array(weight.codes, codes))
    graph.initializer.append(numpy_helper.from_array(weight.scale.astype(np.float32), scale))
    graph.node.append(helper.make_node("DequantizeLinear", [codes, scale], [name], name=f"{name}.dequantize", axis=0))


def _shared_constants(nodes: list[onnx.NodeProto]) -> set[str]:
    """What several nodes read as their weights, or one twice."""
    counts = Counter(name for node in nodes for name in node.input[1:])
    return {name for name, count in counts.items() if count > 1}


def _drop_constant(graph: onnx.GraphProto, name: str) -> None:
    """With what was said of its shape: where the input is read twice, the weight has twice the channels."""
    kept = [tensor for tensor in graph.initializer if tensor.name != name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    said = [value for value in graph.value_info if value.name != name]
    del graph.value_info[:]
    graph.value_info.extend(said)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Float weights that nothing reads any more."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
