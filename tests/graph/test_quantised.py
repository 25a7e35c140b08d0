"""Graphs with codes in them, read as the float networks they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from quantising import quantised
from synthetic import HALO, synthetic_model

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.deploy import deploy_file
from espan_deploy.errors import ExportError
from espan_deploy.graph import SizedGraph, complexity, reach
from espan_deploy.graph.quantised import is_quantised, without_quantisation

HALF_A_STEP = 0.5 / 127
"""Of a weight, relative to its channel's largest."""


@pytest.mark.parametrize("signed", [False, True])
def test_cost_and_halo_are_those_of_the_float_graph(signed: bool) -> None:
    model = synthetic_model()
    plain, codes = ir.from_proto(model), ir.from_proto(quantised(model, signed=signed))
    assert is_quantised(codes.graph)
    assert not is_quantised(plain.graph)
    floats = without_quantisation(codes)
    assert not {node.op_type for node in floats.graph} & {"QuantizeLinear", "DequantizeLinear"}
    expected, got = complexity(SizedGraph(plain)), complexity(SizedGraph(floats))
    assert (got.parameters, got.multiply_adds, got.convolutions) == (
        expected.parameters,
        expected.multiply_adds,
        expected.convolutions,
    )
    assert reach(SizedGraph(floats)).halo == HALO
    assert {node.op_type for node in codes.graph} >= {"QuantizeLinear", "DequantizeLinear"}, "its input is left alone"


def test_weights_are_what_their_codes_stand_for() -> None:
    model = synthetic_model()
    floats = ir.to_proto(without_quantisation(ir.from_proto(quantised(model))))
    onnx.checker.check_model(floats, full_check=True)
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in floats.graph.initializer}
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 4:
            error = np.abs(kept[f"{tensor.name}.read"] - values) / np.abs(values).max((1, 2, 3), keepdims=True)
            assert 0 < error.max() <= HALF_A_STEP * 1.01
    image = np.random.default_rng(0).random((1, 3, 9, 11), np.float32)
    run = [GraphEvaluator(each).run(image)[0] for each in (model, floats, quantised(model))]
    assert np.abs(run[0] - run[1]).max() < np.abs(run[0] - run[2]).max() < 0.05


def test_values_that_move_in_codes_move_in_floats() -> None:
    """The shuffle behind the quantiser, as some tools write it."""
    model = quantised(synthetic_model())
    graph, last = model.graph, model.graph.node[-1]
    for name, array in (("out.scale", np.float32(1 / 255)), ("out.zero", np.uint8(0))):
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    source, result = last.input[0], last.output[0]
    last.input[0], last.output[0] = "out.codes", "out.moved"
    graph.node.insert(
        len(graph.node) - 1, helper.make_node("QuantizeLinear", [source, "out.scale", "out.zero"], ["out.codes"])
    )
    graph.node.append(helper.make_node("DequantizeLinear", ["out.moved", "out.scale", "out.zero"], [result]))
    onnx.checker.check_model(model)
    floats = ir.to_proto(without_quantisation(ir.from_proto(onnx.shape_inference.infer_shapes(model))))
    onnx.checker.check_model(floats, full_check=True)
    assert reach(SizedGraph(ir.from_proto(floats))).halo == HALO


def test_operators_on_codes_are_refused_with_the_form_that_is_taken() -> None:
    node = ir.node("QLinearConv", [None] * 8, name="first")
    graph = ir.Graph([], [], nodes=[node])
    with pytest.raises(ExportError, match="QLinearConv first") as caught:
        is_quantised(graph)
    assert "QDQ" in caught.value.hint


def test_a_scale_that_is_computed_is_refused() -> None:
    model = quantised(synthetic_model())
    graph = model.graph
    graph.node.insert(0, helper.make_node("ReduceMax", ["input"], ["computed"], keepdims=0))
    next(node for node in graph.node if node.name == "w1.dequantise").input[1] = "computed"
    with pytest.raises(ExportError, match="takes a scale that is computed"):
        without_quantisation(ir.from_proto(model))


def test_what_onnx_runtime_writes_is_described(tmp_path: Path) -> None:
    """Its own quantiser: weights with a scale for each channel, biases in codes of 32 bits."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    plain, codes = tmp_path / "float.onnx", tmp_path / "codes.onnx"
    onnx.save(synthetic_model(described=False), plain)
    images = iter([{"input": np.random.default_rng(0).random((1, 3, 24, 24), np.float32)}])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
            return next(images, None)

    form = quantization.QuantFormat.QDQ
    quantization.quantize_static(str(plain), str(codes), Reader(), quant_format=form, per_channel=True)
    made = deploy_file(codes)
    description, expected = made.description, deploy_file(plain, folding=False).description
    assert (description.precision, expected.precision) == ("int8", "fp32")
    assert (description.halo, description.scale) == (HALO, 4)
    # It gives a convolution without a bias one.
    assert 0 <= description.parameters - expected.parameters <= 8
    assert description.multiply_adds == expected.multiply_adds
    assert made.report.sites == ()
