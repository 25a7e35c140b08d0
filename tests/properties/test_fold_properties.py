"""Whatever hypothesis builds of linear parts: folded is unfolded, never dearer, and folding again changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from espan_deploy.fold import FoldResult, fold
from espan_deploy.fold.evaluate import widen

EXACT = 1e-12
"""Float64, relative to the largest value."""

SIZES = ((1, 1), (1, 6), (7, 1), (5, 8))

EXAMPLES = settings(max_examples=40)


class Drawn:
    """A graph in the making, every map of it of the input's height and width."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op_type: str, inputs: Sequence[str], **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))  # type: ignore[arg-type]
        return name

    def constant(self, *shape: int, low: float = -1.0) -> str:
        array = self.random.uniform(low, 1, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def model(self, output: str, c_in: int, c_out: int) -> ir.Model:
        image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", c_in, "h", "w"])
        out = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", c_out, "h", "w"])
        graph = helper.make_graph(self.nodes, "drawn", [image], [out], self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return ir.from_proto(proto)


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """Branches that are summed, each a chain of what re-parameterised blocks are made of; a ReLU now and then."""
    drawn = Drawn(draw(st.integers(0, 99)))
    c_in = channels = draw(st.integers(1, 4))
    value = "input"
    for _ in range(draw(st.integers(1, 2))):
        c_out = draw(st.sampled_from([channels, channels * 2, 3]))
        branches = [_branch(draw, drawn, value, channels, c_out) for _ in range(draw(st.integers(1, 3)))]
        if c_out == channels and draw(st.booleans()):
            branches.append(value)
        value = branches[0]
        for branch in branches[1:]:
            value = drawn.add("Add", [value, branch])
        if draw(st.booleans()):
            value = drawn.add("Relu", [value])
        channels = c_out
    if value == "input":
        value = drawn.add("Relu", [value])
    return drawn.model(value, c_in, channels)


def _branch(draw: st.DrawFn, drawn: Drawn, value: str, c_in: int, c_out: int) -> str:
    for position in range(length := draw(st.integers(1, 3))):
        wanted = c_out if position == length - 1 else draw(st.integers(1, 6))
        value = _conv(draw, drawn, value, c_in, wanted)
        c_in = wanted
        match draw(st.sampled_from(["nothing", "scale", "norm", "negate", "shift"])):
            case "scale":
                value = drawn.add("Mul", [value, drawn.constant(1, c_in, 1, 1)])
            case "shift":
                value = drawn.add("Add", [value, drawn.constant(c_in, 1, 1)])
            case "negate":
                value = drawn.add("Neg", [value])
            case "norm":
                statistics = [drawn.constant(c_in) for _ in range(3)] + [drawn.constant(c_in, low=0.5)]
                value = drawn.add("BatchNormalization", [value, *statistics], epsilon=2.0**-10)
    return value


def _conv(draw: st.DrawFn, drawn: Drawn, value: str, c_in: int, c_out: int) -> str:
    height, width = draw(st.tuples(st.sampled_from([1, 1, 3, 5]), st.sampled_from([1, 1, 3, 5])))
    groups = draw(st.sampled_from([g for g in range(1, c_in + 1) if c_in % g == 0 and c_out % g == 0]))
    dilation = draw(st.sampled_from([1, 1, 2]))
    rows, columns = dilation * (height // 2), dilation * (width // 2)
    inputs = [value, drawn.constant(c_out, c_in // groups, height, width)]
    if draw(st.booleans()):
        inputs.append(drawn.constant(c_out))
    pads = [rows, columns, rows, columns]
    if draw(st.booleans()):  # padded first
        drawn.weights.append(
            numpy_helper.from_array(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64), f"w{len(drawn.weights)}")
        )
        inputs[0], pads = drawn.add("Pad", [value, drawn.weights[-1].name]), [0, 0, 0, 0]
    return drawn.add("Conv", inputs, pads=pads, dilations=[dilation] * 2, group=groups)


def run(model: ir.Model, x: NDArray[np.float64]) -> NDArray[np.float64]:
    (out,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"input": x})
    return np.asarray(out)


def multiply_adds(model: ir.Model) -> int:
    """Per pixel: every map has the input's size."""
    weights = (v.const_value for node in model.graph if node.op_type == "Conv" for v in node.inputs[1:2] if v)
    return sum(weight.size for weight in weights if weight is not None)


def bytes_of(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@EXAMPLES
@given(networks())
def test_folded_is_unfolded(model: ir.Model) -> None:
    result, wide = fold(model), widen(model)
    random = np.random.default_rng(3)

    for height, width in SIZES:
        x = random.standard_normal((2, model.graph.inputs[0].shape[1], height, width))  # type: ignore[index]
        expected, got = run(wide, x), run(result.model_float64, x)
        assert got.shape == expected.shape
        # Of the largest value of a map of noise: a 1x1 image may cancel to anything.
        scale = max(np.abs(expected).max(), 1.0)
        assert np.abs(got - expected).max() <= EXACT * scale


@EXAMPLES
@given(networks())
def test_never_dearer_and_the_report_adds_up(model: ir.Model) -> None:
    before = multiply_adds(model)

    result = fold(model)

    saved = sum(site.multiply_adds_before - site.multiply_adds_after for site in result.report.sites)
    assert multiply_adds(result.model) == before - saved <= before
    assert all(site.multiply_adds_after <= site.multiply_adds_before for site in result.report.sites)


@EXAMPLES
@given(networks())
def test_folding_leaves_its_input_alone_and_is_deterministic_and_final(model: ir.Model) -> None:
    original = bytes_of(model)

    first, second = fold(model), fold(model)
    again: FoldResult = fold(first.model)

    assert bytes_of(model) == original
    assert bytes_of(first.model) == bytes_of(second.model)
    assert first.report == second.report
    assert not again.report.sites
    assert bytes_of(again.model) == bytes_of(first.model)
