"""Small networks written by hand: two convolutions and a pixel shuffle, fast enough for every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from espan_deploy.description import ModelDescription

SCALE = 4
HALO = 2  # two 3x3 convolutions


def synthetic_description(**changes: object) -> ModelDescription:
    values: dict[str, object] = {"network": "tiny", "title": "Tiny", "scale": SCALE, "halo": HALO}
    return ModelDescription(**{**values, **changes})  # type: ignore[arg-type]


def synthetic_model(
    *,
    value_range: float = 1.0,
    dtype: int = TensorProto.FLOAT,
    skip: bool = False,
    seed: int = 7,
    described: bool = True,
    gain: float = 1.0,
    halo: int | None = HALO,
) -> onnx.ModelProto:
    """conv 3x3 -> SiLU -> conv 3x3 -> pixel shuffle, near the identity so that outputs look like the image.

    skip: add the image to the features, so that more than convolutions read the input.
    gain: factor on the features between the convolutions, undone by the second: to provoke overflow.
    """
    rng = np.random.default_rng(seed)
    np_type = helper.tensor_dtype_to_np_dtype(dtype)
    first = rng.normal(0, 0.05, (8, 3, 3, 3))
    for channel in range(3):
        first[channel, channel, 1, 1] += 4.0
    second = rng.normal(0, 0.02, (3 * SCALE**2, 8, 3, 3))
    for channel in range(3):
        second[channel * SCALE**2 : (channel + 1) * SCALE**2, channel, 1, 1] += 0.25
    # Near the identity in [0, 1], whatever the range of the values.
    first *= gain / value_range
    second *= value_range / gain
    bias = rng.normal(0, 0.01, 3 * SCALE**2) * value_range
    initializers = [
        numpy_helper.from_array(first.astype(np_type), "w1"),
        numpy_helper.from_array(second.astype(np_type), "w2"),
        numpy_helper.from_array(bias.astype(np_type), "b2"),
    ]
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["f"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["f"], ["s"]),
        helper.make_node("Mul", ["f", "s"], ["g"]),
        helper.make_node("Conv", ["g", "w2", "b2"], ["c"], pads=[1, 1, 1, 1]),
    ]
    if skip:
        initializers.append(numpy_helper.from_array(np.array([0.1], np_type), "tenth"))
        nodes += [
            helper.make_node("Concat", ["input"] * SCALE**2, ["i"], axis=1),
            helper.make_node("Mul", ["i", "tenth"], ["j"]),
            helper.make_node("Add", ["c", "j"], ["d"]),
        ]
    nodes.append(helper.make_node("DepthToSpace", ["d" if skip else "c"], ["output"], blocksize=SCALE, mode="CRD"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", dtype, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("output", dtype, ["batch", 3, "out_height", "out_width"])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if described:
        description = synthetic_description(value_range=value_range, halo=halo)
        for key, value in description.to_metadata().items():
            model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return model


def save_synthetic(path: Path, **settings: object) -> Path:
    onnx.save(synthetic_model(**settings), path)  # type: ignore[arg-type]
    return path
