"""Sizes inside a graph, against those that ONNX Runtime finds when it runs it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from sized import STRUCTURES
from torch.utils.flop_counter import FlopCounterMode

from espan_deploy.graph import SizedGraph, complexity
from espan_deploy.onnx_export import onnx_from_module


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_shape_is_the_one_that_running_finds(name: str) -> None:
    torch.manual_seed(0)
    make, multiple = STRUCTURES[name]
    module = make().eval()
    model = onnx_from_module(module, traced=(24, 40))
    graph = SizedGraph(model)
    proto = ir.to_proto(model)
    values = [output.name for node in model.graph for output in node.outputs]
    proto.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values if value != "output")
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = [output.name for output in session.get_outputs()]

    for batch, height, width in ((1, 16, 24), (3, 15 + -15 % multiple, 21 + -21 % multiple)):
        sizes = graph.at(height, width, batch)
        ran = session.run(None, {"input": np.zeros((batch, 3, height, width), np.float32)})
        found = sizes.shapes()
        assert {value: found.get(value) for value in names} == {
            value: array.shape for value, array in zip(names, ran, strict=True)
        }
        assert sizes.output_shape == (batch, 3, 2 * height, 2 * width)

        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            module(torch.zeros(1, 3, height, width))
        assert complexity(graph, height, width).multiply_adds == counter.get_total_flops() // 2


def graph_of(nodes: list[onnx.NodeProto]) -> SizedGraph:
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, "h", "w"])
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], [out]), opset_imports=[helper.make_opsetid("", 20)]
    )
    return SizedGraph(ir.from_proto(model))


def test_values_that_sizes_make_are_evaluated_for_each_size() -> None:
    graph = graph_of(
        [
            helper.make_node("Shape", ["input"], ["sides"], start=2),
            helper.make_node("Mul", ["sides", "sides"], ["squares"]),
            helper.make_node("ConstantOfShape", ["squares"], ["output"]),
        ]
    )
    squares = graph.model.graph[1].outputs[0]

    assert [graph.at(h, w).value(squares).tolist() for h, w in ((3, 5), (7, 2))] == [[9, 25], [49, 4]]  # type: ignore[union-attr]
    assert graph.at(3, 5).output_shape == (9, 25)


def test_what_depends_on_pixels_is_unknown_and_so_is_what_follows() -> None:
    graph = graph_of(
        [
            helper.make_node("NonZero", ["input"], ["places"]),
            helper.make_node("Shape", ["places"], ["count"]),
            helper.make_node("ConstantOfShape", ["count"], ["output"]),
        ]
    )
    sizes = graph.at(8, 8)

    assert sizes.value(graph.model.graph[1].outputs[0]) is None
    assert sizes.output_shape is None
    assert "places" not in sizes.shapes()


def test_a_graph_of_one_size_keeps_it() -> None:
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 16, "w"])
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"])], "g", [image], [out])

    assert SizedGraph(ir.from_proto(helper.make_model(graph))).at(256, 256).output_shape == (1, 3, 16, 256)
