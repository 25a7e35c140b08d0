"""The Q/DQ graph, a graph in PyTorch, and convolutions over concatenations taken apart."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from synthetic import synthetic_model

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.precision.layers import name_nodes
from espan_deploy.quantize.arithmetic import ActivationCodes, Signs
from espan_deploy.quantize.layers import quantizable
from espan_deploy.quantize.reconstruct import reconstruct
from espan_deploy.quantize.scheme import Scheme
from espan_deploy.quantize.sensitivity import emulated, without
from espan_deploy.quantize.split import with_split_concatenations
from espan_deploy.quantize.torch_graph import TorchGraph, unlearnable
from espan_deploy.quantize.writer import quantized_graph

SAME = 1e-5
"""Between float32 of two runtimes, white being 1."""

A_CODE = 0.01
"""Between two runtimes that quantise: a value on the edge between two codes may fall either way."""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    made = synthetic_model()
    name_nodes(made.graph)
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((2, 3, 24, 24), np.float32)


def scheme_of(model: onnx.ModelProto, images: np.ndarray, signs: Signs = "unsigned") -> Scheme:
    return reconstruct(model, quantizable(model.graph)[0], images, signs=signs)


def torch_output(graph: TorchGraph, images: np.ndarray, *convolve: object) -> np.ndarray:
    import torch

    with torch.no_grad():
        return graph(torch.from_numpy(images), *convolve).numpy()  # type: ignore[arg-type]


@pytest.mark.parametrize("signs", ["unsigned", "signed"])
def test_the_graph_computes_what_was_fitted(model: onnx.ModelProto, images: np.ndarray, signs: Signs) -> None:
    scheme = scheme_of(model, images, signs)
    written = quantized_graph(model, scheme)
    onnx.checker.check_model(written, full_check=True)
    expected = torch_output(TorchGraph(model), images, emulated(scheme))
    got = GraphEvaluator(written).run(images)[0]
    assert np.abs(got - expected).max() < A_CODE
    float_output = GraphEvaluator(model).run(images)[0]
    assert 0 < np.abs(got - float_output).mean() < A_CODE


@pytest.mark.parametrize("signs", ["unsigned", "signed"])
def test_a_convolution_that_reads_twice_is_nearer_to_float(
    model: onnx.ModelProto, images: np.ndarray, signs: Signs
) -> None:
    """Two readings half a step apart have steps half as large: a quarter of the error, and less is left of weights'."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    # Exported graphs say the shapes of weights too.
    model.graph.value_info.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, (48, 8, 3, 3)))
    convolutions = quantizable(model.graph)[0]
    last = convolutions[-1].name
    expected = torch_output(TorchGraph(model), images)
    errors = []
    for twice in ((), (last,)):
        scheme = reconstruct(model, convolutions, images, keep=[convolutions[0].name], twice=twice, signs=signs)
        emulation = torch_output(TorchGraph(model), images, emulated(scheme))
        written = quantized_graph(model, scheme)
        onnx.checker.check_model(written, full_check=True)
        assert np.abs(GraphEvaluator(written).run(images)[0] - emulation).max() < A_CODE
        errors.append(float(np.square(emulation - expected).mean()))
    assert errors[1] < 0.5 * errors[0]
    assert scheme.weights[last].codes.shape == (48, 16, 3, 3)


def test_a_map_is_read_once_by_one_and_twice_by_another(images: np.ndarray) -> None:
    model = concatenating()
    name_nodes(model.graph)
    convolutions = quantizable(model.graph)[0]
    scheme = reconstruct(model, convolutions, images, twice=[convolutions[0].name])
    written = quantized_graph(model, scheme)
    onnx.checker.check_model(written, full_check=True)
    assert sum(node.op_type == "QuantizeLinear" for node in written.graph.node) == 2 + 1 + 2
    emulation = torch_output(TorchGraph(model), images, emulated(scheme))
    assert np.abs(GraphEvaluator(written).run(images)[0] - emulation).max() < A_CODE * np.abs(emulation).max()


def test_what_is_fitted_already_stays(model: onnx.ModelProto, images: np.ndarray) -> None:
    convolutions = quantizable(model.graph)[0]
    first, last = (conv.name for conv in convolutions)
    once = reconstruct(model, convolutions, images)
    again = reconstruct(model, convolutions, images, twice=[last], start=without(once, [last]))
    assert again.weights[first] is once.weights[first]
    assert again.values == once.values
    assert (once.weights[last].readings, again.weights[last].readings) == (1, 2)


def test_what_engines_fuse(model: onnx.ModelProto, images: np.ndarray) -> None:
    """The pattern: int8 initialisers, one Q/DQ for each feature map, float biases, float weights gone."""
    written = quantized_graph(model, scheme_of(model, images)).graph
    tensors = {tensor.name: tensor for tensor in written.initializer}
    made_by = {name: node for node in written.node for name in node.output}
    for node in written.node:
        if node.op_type != "Conv":
            continue
        value, weight = (made_by[name] for name in node.input[:2])
        assert value.op_type == weight.op_type == "DequantizeLinear"
        assert tensors[weight.input[0]].data_type == TensorProto.INT8
        assert tensors[node.input[2]].data_type == TensorProto.FLOAT
        assert made_by[value.input[0]].op_type == "QuantizeLinear"
    assert not {"w1", "w2"} & set(tensors)


def test_what_stays_in_float_is_as_it_was(model: onnx.ModelProto, images: np.ndarray) -> None:
    names = [conv.name for conv in quantizable(model.graph)[0]]
    written = quantized_graph(model, without(scheme_of(model, images), names[:1]))
    kept = next(node for node in written.graph.node if node.name == names[0])
    assert kept.input[0] == "input"
    assert "w1" in {tensor.name for tensor in written.graph.initializer}
    assert sum(node.op_type == "QuantizeLinear" for node in written.graph.node) == 1


def test_exact_input_codes_need_no_smoothing(model: onnx.ModelProto, images: np.ndarray) -> None:
    scheme = reconstruct(model, quantizable(model.graph)[0], images, exact_input=ActivationCodes(1 / 255, 0))
    assert scheme.values["input"].exact
    assert not any(node.name.startswith("input.smoothed") for node in quantized_graph(model, scheme).graph.node)


def concatenating() -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    tensors = {"w1": (4, 3, 3, 3), "w2": (5, 3, 1, 1), "w3": (6, 9, 1, 1), "b3": (6,), "w4": (48, 6, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["input", "w2"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["ab"], axis=1),
        helper.make_node("Conv", ["ab", "w3", "b3"], ["c"], name="fuse"),
        helper.make_node("Conv", ["c", "w4"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["d"], ["output"], blocksize=4, mode="CRD"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, side, side])
        for name, side in (("input", "h"), ("output", None))
    ]
    initializers = [
        numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name) for name, shape in tensors.items()
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_1x1_over_a_concatenation_becomes_one_for_each_source(images: np.ndarray) -> None:
    model = concatenating()
    split = with_split_concatenations(model)
    onnx.checker.check_model(split, full_check=True)
    assert [node.op_type for node in split.graph.node].count("Conv") == 5
    assert not any(node.op_type == "Concat" for node in split.graph.node)
    before, after = (GraphEvaluator(each).run(images)[0] for each in (model, split))
    assert np.abs(before - after).max() < SAME


def test_a_graph_in_pytorch_computes_the_same(model: onnx.ModelProto, images: np.ndarray) -> None:
    for each in (model, concatenating()):
        assert unlearnable(each) == ()
        expected = GraphEvaluator(each).run(images)[0]
        assert np.abs(torch_output(TorchGraph(each), images) - expected).max() < SAME


def test_operators_without_a_gradient_are_evaluated_and_named(images: np.ndarray) -> None:
    model = concatenating()
    model.graph.node.insert(4, helper.make_node("Softsign", ["c"], ["c_"]))
    model.graph.node[5].input[0] = "c_"
    assert unlearnable(model) == ("Softsign",)
    expected = GraphEvaluator(model).run(images)[0]
    assert np.abs(torch_output(TorchGraph(model), images) - expected).max() < SAME


def test_what_cannot_be_quantised_says_why() -> None:
    model = concatenating()
    model.graph.node[3].attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
    model.graph.node.append(helper.make_node("MatMul", ["output", "output"], ["square"]))
    name_nodes(model.graph)
    convolutions, skipped = quantizable(model.graph)
    assert len(convolutions) == 3
    reasons = [each.reason for each in skipped]
    assert "padding" in reasons[0]
    assert "MatMul" in reasons[1]
