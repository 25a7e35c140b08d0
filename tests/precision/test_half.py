"""The FP16 graph: every type as intended, and values as FP16 has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from quantising import quantised
from synthetic import synthetic_description, synthetic_model

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.description import Pixels, description_from_metadata
from espan_deploy.errors import ExportError
from espan_deploy.pixels import with_pixels
from espan_deploy.precision.bytes_in import rescale_byte_fed_convolutions
from espan_deploy.precision.emulate import emulate_half
from espan_deploy.precision.half import to_half, value_types, weight_loss
from espan_deploy.precision.layers import layers_of, name_nodes

HALF_STEPS = 8 * 2.0**-11
"""A few roundings to FP16's 11 bits, one after the other, of values around 1."""


def graph(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray] | None = None, channels: int = 3
) -> onnx.ModelProto:
    """nodes from "input" to "output", float32 at both ends."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", channels, "height", "width"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, list("abcd"))],
        [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def run(model: onnx.ModelProto, values: np.ndarray) -> np.ndarray:
    return GraphEvaluator(model).run(values)[0]


@pytest.mark.parametrize("pixels", ["uint8", "float32", "float16"])
def test_everything_inside_is_half(pixels: Pixels) -> None:
    model = with_pixels(synthetic_model(skip=True), synthetic_description(), pixels)
    result = to_half(model)
    types = value_types(result.model)
    ends = {"input", "output"}
    inside = {name: kind for name, kind in types.items() if name not in ends and kind == TensorProto.FLOAT}
    assert inside == {}
    wanted = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[pixels]
    assert {types[name] for name in ends} == {wanted}
    assert result.fp32_nodes == {}
    casts = [node for node in result.model.graph.node if node.op_type == "Cast"]
    assert len(casts) == (0 if pixels == "float16" else 2)


def test_the_description_says_fp16_and_the_input_is_left_alone() -> None:
    model = synthetic_model()
    before = model.SerializeToString(deterministic=True)
    result = to_half(model)
    assert model.SerializeToString(deterministic=True) == before
    described = description_from_metadata({e.key: e.value for e in result.model.metadata_props})
    assert described == replace(synthetic_description(), precision="fp16")


def test_bytes_are_cast_by_the_first_node_and_made_by_the_last() -> None:
    nodes = to_half(with_pixels(synthetic_model(), synthetic_description(), "uint8")).model.graph.node
    assert (nodes[0].op_type, nodes[0].input[0]) == ("Cast", "input")
    assert (nodes[-1].op_type, nodes[-1].output[0]) == ("Cast", "output")


def test_values_are_those_of_fp32_to_fp16_s_rounding() -> None:
    model = synthetic_model()
    values = image(2, 3, 9, 7)
    expected = run(model, values)
    for candidate in (to_half(model).model, emulate_half(to_half(model).model)):
        assert np.abs(run(candidate, values) - expected).max() < HALF_STEPS


def test_emulation_equals_the_reference_where_both_round_each_operator() -> None:
    """Element-wise operators only: numpy sums a convolution in FP16, which no GPU does."""
    nodes = [
        helper.make_node("Mul", ["input", "k"], ["a"]),
        helper.make_node("Add", ["a", "input"], ["b"]),
        helper.make_node("Sub", ["b", "k"], ["c"]),
        helper.make_node("Mul", ["c", "b"], ["output"]),
    ]
    half = to_half(graph(nodes, {"k": np.array(1.2345, np.float32)})).model
    values = image(1, 3, 40, 40) * 7
    expected = ReferenceEvaluator(half).run(None, {"input": values})[0]
    assert np.array_equal(run(emulate_half(half), values), expected)


def test_overflow_shows_in_emulation_and_not_without_it() -> None:
    """Why the gate emulates: ONNX Runtime on a CPU leaves the roundings out."""
    nodes = [helper.make_node("Mul", ["input", "k"], ["big"]), helper.make_node("Div", ["big", "k"], ["output"])]
    half = to_half(graph(nodes, {"k": np.array(60000.0, np.float32)})).model
    values = np.full((1, 3, 2, 2), 2.0, np.float32)
    assert np.isinf(run(emulate_half(half), values)).all()
    assert np.isfinite(run(half, values)).all()


def test_float16_ends_are_emulated_as_float16() -> None:
    model = with_pixels(synthetic_model(), synthetic_description(), "float16")
    half = to_half(model).model
    values = image(1, 3, 8, 8).astype(np.float16)
    result = run(emulate_half(half), values)
    assert result.dtype == np.float16
    assert np.abs(result - run(model, values)).max() < HALF_STEPS


def test_layers_are_kept_by_name_and_by_pattern() -> None:
    model = synthetic_model()
    for keep in (["w1"], ["w?"], ["w[1]"]):
        result = to_half(model, keep_fp32=keep)
        kept = {node for node in result.fp32_nodes if result.fp32_nodes[node] == "kept on request"}
        assert len(kept) == (3 if keep != ["w?"] else 5)
        types = value_types(result.model)
        assert types["f"] == TensorProto.FLOAT
    everything = to_half(model, keep_fp32=["*"])
    values = image(1, 3, 6, 6)
    assert everything.half_nodes == 0
    assert np.array_equal(run(everything.model, values), run(model, values))


def test_an_unknown_layer_is_named_with_the_nearest() -> None:
    with pytest.raises(ExportError, match="no layer 'w11'") as caught:
        to_half(synthetic_model(), keep_fp32=["w11"])
    assert "'w1'" in caught.value.hint


@settings(max_examples=25)
@given(st.sets(st.integers(0, 8)))
def test_any_set_of_nodes_may_be_kept(kept: set[int]) -> None:
    model = synthetic_model(skip=True)
    name_nodes(model.graph)
    names = [node.name for node in model.graph.node]
    chosen = [names[index] for index in kept if index < len(names)]
    result = to_half(model, keep_fp32=chosen)
    assert set(result.fp32_nodes) == set(chosen)
    values = image(1, 3, 5, 6)
    assert np.abs(run(emulate_half(result.model), values) - run(model, values)).max() < HALF_STEPS


def test_weights_that_overflow_keep_their_layer_and_are_reported() -> None:
    model = synthetic_model(gain=1e6)
    result = to_half(model)
    (loss,) = [loss for loss in result.weights if loss.overflowed]
    assert loss.name == "w1"
    reasons = [reason for reason in result.fp32_nodes.values() if "overflow" in reason]
    assert len(reasons) == 1
    assert np.isfinite(numpy_helper.to_array(result.model.graph.initializer[0])).all()


def test_weight_loss_counts_each_kind() -> None:
    values = np.array([1.0, 1e5, 1e-9, 1e-6, 0.0], np.float32)
    loss = weight_loss("w", values)
    assert (loss.values, loss.overflowed, loss.vanished, loss.subnormal) == (5, 1, 1, 1)


def test_small_weights_are_reported() -> None:
    weights = np.full((3, 3, 1, 1), 1e-6, np.float32)
    result = to_half(graph([helper.make_node("Conv", ["input", "w"], ["output"])], {"w": weights}))
    assert [(loss.name, loss.subnormal) for loss in result.weights] == [("w", 9)]


def test_sums_over_the_image_stay_fp32() -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Mul", ["input", "mean"], ["output"]),
    ]
    model = graph(nodes)
    result = to_half(model)
    assert list(result.fp32_nodes.values()) == ["a sum over the image"]
    again = to_half(model, keep_fp32=list(result.fp32_nodes))  # it would stay FP32 without the request
    assert again.fp32_nodes == result.fp32_nodes
    assert value_types(result.model)["output"] == TensorProto.FLOAT


def test_a_channel_attention_stays_fp32_up_to_its_product_with_the_image() -> None:
    """Energies as ECAS has them: the square of 1000 is no FP16 number, nor is a sum of such squares."""
    nodes = [
        helper.make_node("Mul", ["input", "thousand"], ["features"], name="features"),
        helper.make_node("Mul", ["features", "features"], ["squares"], name="squares"),
        helper.make_node("ReduceSum", ["squares", "spatial"], ["energy"], name="energy"),
        helper.make_node("Sqrt", ["energy"], ["root"], name="root"),
        helper.make_node("Conv", ["root", "w"], ["mixed"], name="mixed"),
        helper.make_node("Tanh", ["mixed"], ["gate"], name="gate"),
        helper.make_node("Mul", ["features", "gate"], ["output"], name="product"),
    ]
    constants = {
        "thousand": np.array(1000, np.float32),
        "spatial": np.array([2, 3]),
        "w": np.full((3, 3, 1, 1), 1e-5, np.float32),
    }
    model = graph(nodes, constants)

    result = to_half(model)

    assert set(result.fp32_nodes) == {"squares", "energy", "root", "mixed", "gate"}
    values = image(1, 3, 40, 50)
    np.testing.assert_allclose(run(result.model, values), run(model, values), rtol=HALF_STEPS)


def test_a_square_that_others_read_too_is_no_part_of_a_sum() -> None:
    nodes = [
        helper.make_node("Pow", ["input", "two"], ["squares"], name="squares"),
        helper.make_node("ReduceMean", ["squares", "channels"], ["mean"], name="mean"),
        helper.make_node("Add", ["squares", "mean"], ["output"], name="sum"),
    ]
    result = to_half(graph(nodes, {"two": np.array(2, np.float32), "channels": np.array([1])}))
    assert set(result.fp32_nodes) == {"mean"}


def test_a_choice_is_made_from_scores_in_fp32() -> None:
    weights = np.ones((2, 4, 1, 1), np.float32)
    weights[1] *= 1 + 2.0**-13  # in FP16 that is 1: the scores are equal, and the first is taken
    model = graph(
        [
            helper.make_node("Conv", ["input", "features"], ["seen"], "before"),
            helper.make_node("Conv", ["seen", "scores"], ["scored"], "score"),
            helper.make_node("LogSoftmax", ["scored"], ["likely"], "likelihood", axis=1),
            helper.make_node("ArgMax", ["likely"], ["choice"], "choose", axis=1),
            helper.make_node("Cast", ["choice"], ["output"], "number", to=TensorProto.FLOAT),
        ],
        {"features": np.ones((4, 3, 1, 1), np.float32), "scores": weights},
    )
    half = to_half(model)
    assert set(half.fp32_nodes) == {"score", "likelihood", "choose"}
    assert (run(emulate_half(half.model), image(1, 3, 4, 4)) == 1).all()


def test_sizes_computed_in_floating_point_stay_exact() -> None:
    """3001 is no FP16 number: in FP16 the image would come out a pixel short."""
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"], start=2),
        helper.make_node("Cast", ["shape"], ["size"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["size", "two"], ["wanted"]),
        helper.make_node("Cast", ["wanted"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Shape", ["input"], ["first"], start=0, end=2),
        helper.make_node("Concat", ["first", "whole"], ["sizes"], axis=0),
        helper.make_node("Resize", ["input", "", "", "sizes"], ["output"], mode="nearest"),
    ]
    result = to_half(graph(nodes, {"two": np.array([2.0, 2.0], np.float32)}))
    assert "its result depends on the image's size alone" in result.fp32_nodes.values()
    assert run(result.model, image(1, 3, 1, 3001)).shape == (1, 3, 2, 6002)


def test_constants_as_nodes_and_shared_constants() -> None:
    constant = numpy_helper.from_array(np.array(0.5, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["k"], value=constant),
        helper.make_node("Sub", ["input", "k"], ["a"]),
        helper.make_node("Mul", ["a", "k"], ["output"]),
    ]
    model = graph(nodes)
    name_nodes(model.graph)
    result = to_half(model, keep_fp32=[model.graph.node[2].name])
    assert sorted(t.data_type for t in result.model.graph.initializer) == [TensorProto.FLOAT, TensorProto.FLOAT16]
    values = image(1, 3, 4, 4)
    assert np.abs(run(result.model, values) - run(model, values)).max() < HALF_STEPS


def test_byte_fed_convolutions_are_rescaled_without_any_change() -> None:
    model = with_pixels(synthetic_model(), synthetic_description(), "uint8")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    name_nodes(changed.graph)
    assert rescale_byte_fed_convolutions(changed.graph, set())
    onnx.checker.check_model(changed)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 12, 9, 3), np.uint8)
    assert np.array_equal(run(changed, pixels), run(model, pixels))
    losses = {loss.name: loss for loss in to_half(model).weights}
    (small,) = [t for t in model.graph.initializer if t.name == "w1.pixels"]
    plain = weight_loss("w1", numpy_helper.to_array(small))
    shifted = losses.get("w1.pixels.shifted")
    assert (shifted.subnormal + shifted.vanished if shifted else 0) < plain.subnormal + plain.vanished


def test_rescaling_leaves_what_is_kept_in_fp32_and_what_is_no_bytes() -> None:
    for model in (synthetic_model(), with_pixels(synthetic_model(), synthetic_description(), "float16")):
        assert not rescale_byte_fed_convolutions(model.graph, set())
    model = with_pixels(synthetic_model(), synthetic_description(), "uint8")
    name_nodes(model.graph)
    assert not rescale_byte_fed_convolutions(model.graph, {node.name for node in model.graph.node})


def test_layers_take_their_weights_names() -> None:
    model = synthetic_model(skip=True)
    name_nodes(model.graph)
    layers = {layer.name: len(layer.nodes) for layer in layers_of(model.graph)}
    assert list(layers) == ["input", "w1", "w2"]
    assert sum(layers.values()) == len(model.graph.node)


class TestCodes:
    def test_stay_codes_beside_fp16(self) -> None:
        model = quantised(synthetic_model(), signed=True)
        onnx.helper.set_model_props(model, synthetic_description(precision="int8").to_metadata())
        half = to_half(model)
        assert not [name for name in half.fp32_nodes if "quantise" in name]
        described = description_from_metadata({entry.key: entry.value for entry in half.model.metadata_props})
        assert described is not None
        assert described.precision == "int8"
        for name, dtype in value_types(half.model).items():
            if name.endswith((".codes", ".zero")):
                assert dtype == TensorProto.INT8

    def test_a_scale_below_fp16_stays_fp32(self) -> None:
        model = quantised(synthetic_model(), signed=True)
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == "w2.scale")
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1e-5), "w2.scale"))
        assert to_half(model).fp32_nodes["w2.dequantise"] == "w2.scale is too small for FP16"
