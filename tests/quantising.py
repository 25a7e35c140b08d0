"""Quantised graphs as other tools write them: QuantizeLinear and DequantizeLinear around float operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from synthetic import synthetic_description, synthetic_model

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.backends.probe import made_up_page, made_up_photograph

SIDE = 64


def quantised(model: onnx.ModelProto, *, signed: bool = False) -> onnx.ModelProto:
    """A copy whose convolutions read codes, of the ranges that a photograph and a page make.

    signed: symmetric codes from -127 to 127, else unsigned ones with a zero point. Weights: symmetric, a scale for each
    output channel.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    read = list(dict.fromkeys(node.input[0] for node in graph.node if node.op_type == "Conv"))
    ranges = {name: _range(model, name) for name in read}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for name in read:
        if name == graph.input[0].name:
            nodes += _read_in_codes(graph, name, *ranges[name], signed=signed)
    for node in list(graph.node):
        if node.op_type == "Conv":
            nodes += _weights_in_codes(graph, node.input[1], constants[node.input[1]])
            node.input[0], node.input[1] = f"{node.input[0]}.read", f"{node.input[1]}.read"
        nodes.append(node)
        for name in set(node.output) & set(read):
            nodes += _read_in_codes(graph, name, *ranges[name], signed=signed)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def save_quantised(path: Path, *, of: Path | None = None, **changes: object) -> Path:
    """A quantised synthetic model. of: the FP32 file that its description names. changes: of the description."""
    from hashlib import sha256

    model = quantised(synthetic_model(described=False))
    digest = "" if of is None else sha256(of.read_bytes()).hexdigest()
    described = synthetic_description(**{"precision": "int8", "float_sha256": digest, **changes})
    onnx.helper.set_model_props(model, described.to_metadata())
    path.write_bytes(model.SerializeToString())
    return path


def _range(model: onnx.ModelProto, name: str) -> tuple[float, float]:
    if name == model.graph.input[0].name:
        return 0.0, 1.0
    evaluator = GraphEvaluator(model, outputs=[name])
    pages = [
        make(SIDE, 1).transpose(2, 0, 1)[None].astype(np.float32) / 255 for make in (made_up_photograph, made_up_page)
    ]
    values = [evaluator.run(page)[-1] for page in pages]
    return min(0.0, *(float(v.min()) for v in values)), max(float(v.max()) for v in values)


def _read_in_codes(graph: onnx.GraphProto, name: str, low: float, high: float, *, signed: bool) -> list[onnx.NodeProto]:
    scale = max(-low, high) / 127 if signed else (high - low) / 255
    zero = np.int8(0) if signed else np.uint8(round(-low / scale))
    _add(graph, f"{name}.scale", np.float32(scale))
    _add(graph, f"{name}.zero", zero)
    shared = [f"{name}.scale", f"{name}.zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *shared], [f"{name}.codes"], name=f"{name}.quantise"),
        helper.make_node("DequantizeLinear", [f"{name}.codes", *shared], [f"{name}.read"], name=f"{name}.dequantise"),
    ]


def _weights_in_codes(graph: onnx.GraphProto, name: str, values: NDArray[np.float32]) -> list[onnx.NodeProto]:
    scale = np.abs(values).max((1, 2, 3)).astype(np.float32) / 127
    codes = np.rint(values / scale[:, None, None, None]).astype(np.int8)
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))
    for suffix, array in (("codes", codes), ("scale", scale), ("zero", np.zeros(len(scale), np.int8))):
        _add(graph, f"{name}.{suffix}", array)
    inputs = [f"{name}.{suffix}" for suffix in ("codes", "scale", "zero")]
    return [helper.make_node("DequantizeLinear", inputs, [f"{name}.read"], name=f"{name}.dequantise", axis=0)]


def _add(graph: onnx.GraphProto, name: str, array: object) -> None:
    graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
