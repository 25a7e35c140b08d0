from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from synthetic import synthetic_description, synthetic_model

from espan_deploy.description import METADATA_KEY
from espan_deploy.errors import ExportError
from espan_deploy.pixels import with_pixels

HALF_TOLERANCE = 0.01
"""Levels: a byte may differ where the exact value lies this close to a half (float32 sums in another order)."""

FP16_LEVELS = 1
"""float16 has a step of 1/8 level near white and sums of 72 products: a level at most on this small network."""


def run(model: onnx.ModelProto, images: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"input": images})
    return np.asarray(result)


def levels(model: onnx.ModelProto, images: NDArray[np.uint8], value_range: float, order: int = 1) -> NDArray[Any]:
    """What the model makes of bytes with scaling and layout outside of the graph, in levels, not rounded."""
    planes = images[..., ::order].transpose(0, 3, 1, 2).astype(np.float32) * np.float32(value_range / 255)
    out = run(model, planes).astype(np.float64) * (255 / value_range)
    return out.transpose(0, 2, 3, 1)[..., ::order].clip(0, 255)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (2, 9, 13, 3), dtype=np.uint8)


@pytest.mark.parametrize("value_range", [1.0, 255.0])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_bytes_equal_scaling_outside(images: NDArray[np.uint8], value_range: float, skip: bool, order: Any) -> None:
    model = synthetic_model(value_range=value_range, skip=skip)
    description = synthetic_description(value_range=value_range, color_order=order)
    exact = levels(model, images, value_range, -1 if order == "BGR" else 1)
    got = run(with_pixels(model, description, "uint8"), images)
    assert got.dtype == np.uint8
    assert np.abs(got - exact).max() <= 0.5 + HALF_TOLERANCE


def test_the_factors_cost_nothing_where_convolutions_take_them() -> None:
    plain = synthetic_model()
    wrapped = with_pixels(plain, synthetic_description(), "uint8")
    added = len(wrapped.graph.node) - len(plain.graph.node)
    assert added == 6  # cast, transpose; clip, round, transpose, cast
    skipped = with_pixels(synthetic_model(skip=True), synthetic_description(), "uint8")
    assert [node.op_type for node in skipped.graph.node].count("Mul") == 4  # two of its own


def test_casts_stand_at_both_ends() -> None:
    ops = [node.op_type for node in with_pixels(synthetic_model(), synthetic_description(), "uint8").graph.node]
    assert ops[:2] == ["Cast", "Transpose"]
    assert ops[-2:] == ["Transpose", "Cast"]


def test_shapes_and_metadata_follow() -> None:
    model = synthetic_model()
    model.metadata_props.add(key="author", value="me")
    wrapped = with_pixels(model, synthetic_description(), "uint8")
    dims = [dim.dim_param or dim.dim_value for dim in wrapped.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", "height", "width", 3]
    metadata = {entry.key: entry.value for entry in wrapped.metadata_props}
    assert metadata["author"] == "me"
    assert json.loads(metadata[METADATA_KEY])["pixels"] == "uint8"
    assert json.loads({e.key: e.value for e in model.metadata_props}[METADATA_KEY])["pixels"] == "float32"


def test_float16_graph_takes_bytes(images: NDArray[np.uint8]) -> None:
    exact = levels(synthetic_model(), images, 1.0)
    wrapped = with_pixels(synthetic_model(dtype=TensorProto.FLOAT16), synthetic_description(), "uint8")
    assert np.abs(run(wrapped, images) - exact).max() <= 0.5 + FP16_LEVELS


@pytest.mark.parametrize(("computed", "pixels"), [(TensorProto.FLOAT16, "float32"), (TensorProto.FLOAT, "float16")])
def test_floats_are_cast(images: NDArray[np.uint8], computed: int, pixels: Any) -> None:
    wrapped = with_pixels(synthetic_model(dtype=computed), synthetic_description(), pixels)
    planes = (images.transpose(0, 3, 1, 2) / 255).astype(pixels)
    out = run(wrapped, planes)
    assert out.dtype == np.dtype(pixels)
    exact = run(synthetic_model(), planes.astype(np.float32))
    assert np.abs(out - exact).max() * 255 <= FP16_LEVELS


def test_bytes_twice_is_no_change_and_bytes_to_floats_is_refused() -> None:
    description = synthetic_description()
    wrapped = with_pixels(synthetic_model(), description, "uint8")
    as_bytes = synthetic_description(pixels="uint8")
    assert with_pixels(wrapped, as_bytes, "uint8") == wrapped
    with pytest.raises(ExportError, match="UINT8"):
        with_pixels(wrapped, as_bytes, "float32")


def test_weights_shared_by_two_convolutions_are_copied() -> None:
    model = synthetic_model()
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.output[0] = "twin"
    model.graph.node.insert(1, twin)
    add = onnx.helper.make_node("Add", ["f", "twin"], ["sum"])
    model.graph.node.insert(2, add)
    images = np.full((1, 4, 5, 3), 100, np.uint8)
    exact = levels(model, images, 1.0)
    got = run(with_pixels(model, synthetic_description(), "uint8"), images)
    assert np.abs(got - exact).max() <= 0.5 + HALF_TOLERANCE


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_guard_tells_what_bytes_cannot(images: NDArray[np.uint8], bad: float) -> None:
    images = images // 4 + 96  # nothing to clip, so that the mean before clipping is the mean of the bytes
    model = synthetic_model()
    good = with_pixels(model, synthetic_description(), "uint8", guard=True)
    session = onnxruntime.InferenceSession(good.SerializeToString(), providers=["CPUExecutionProvider"])
    out, guard = session.run(None, {"input": images})
    assert guard == pytest.approx(out.mean(axis=(1, 2, 3)), abs=0.5)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "b2")
    values = np.array(onnx.numpy_helper.to_array(weights))
    values[5] = bad
    weights.CopyFrom(onnx.numpy_helper.from_array(values, "b2"))
    broken = with_pixels(model, synthetic_description(), "uint8", guard=True)
    session = onnxruntime.InferenceSession(broken.SerializeToString(), providers=["CPUExecutionProvider"])
    assert not np.isfinite(session.run(None, {"input": images})[1]).any()
