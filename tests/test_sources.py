"""What a file must hold to be deployed, and what is said of one that does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from synthetic import save_synthetic, synthetic_model

from espan_deploy.deploy import deploy_file
from espan_deploy.errors import CheckpointError, ExportError
from espan_deploy.networks.span.span import SPAN
from espan_deploy.sources import graph_source, network_source


def write(path: Path, change: Callable[[onnx.ModelProto], None], **settings: object) -> Path:
    model = synthetic_model(**settings)  # type: ignore[arg-type]
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def reversed_nodes(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "g"


def without_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def of_one_channel(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def of_two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1, 3, 8, 8]))


def of_no_known_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def with_data_outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../weights.bin"), ("offset", "0"), ("length", "864")):
        tensor.external_data.add(key=key, value=value)


def with_data_missing(model: onnx.ModelProto) -> None:
    with_data_outside(model)
    model.graph.initializer[0].external_data[0].value = "weights.bin"


BAD: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "nodes out of order": (reversed_nodes, "is not a valid ONNX model"),
    "a cycle": (cyclic, "is not a valid ONNX model"),
    "no opset": (without_opset, "is not a valid ONNX model.*opset"),
    "one channel": (of_one_channel, r"expected float32 \(N, 3, H, W\)"),
    "two inputs": (of_two_inputs, "has 2 inputs and 1 outputs"),
    "no shape": (of_no_known_size, "is not a valid ONNX model.*shape"),
    "external data outside its folder": (with_data_outside, "is not a valid ONNX model"),
    "external data missing": (with_data_missing, "is not a valid ONNX model.*weights.bin"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_graph_is_named(tmp_path: Path, what: str) -> None:
    change, message = BAD[what]
    (tmp_path / "weights.bin").write_bytes(bytes(864)) if what.endswith("folder") else None
    folder = tmp_path / "models"
    folder.mkdir()
    path = write(folder / "bad.onnx", change)

    with pytest.raises(ExportError) as caught:
        graph_source(path)

    assert re.search(message, caught.value.message), caught.value.message
    assert "\n" not in caught.value.message


def test_half_precision_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = save_synthetic(tmp_path / "half.onnx", dtype=TensorProto.FLOAT16)

    with pytest.raises(ExportError, match="expected float32") as caught:
        graph_source(path)

    assert "precision" in caught.value.hint


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot read .*gone\.onnx: No such file"):
        graph_source(tmp_path / "gone.onnx")


@pytest.mark.parametrize("content", [b"", b"not a graph", bytes(range(256))])
def test_not_onnx_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)

    with pytest.raises(ExportError, match="is not a valid ONNX model"):
        graph_source(tmp_path / "x.onnx")


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    model = synthetic_model()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)

    graph, source = graph_source(tmp_path / "m.onnx")

    assert (source.network, source.form, source.title) == ("onnx", "graph", "m.onnx")
    weight = graph.graph.initializers["w1"].const_value
    assert weight is not None
    assert np.array_equal(weight.numpy(), onnx.numpy_helper.to_array(synthetic_model().graph.initializer[0]))


def test_weights_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    def old(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    graph, _ = graph_source(write(tmp_path / "old.onnx", old))

    assert [value.name for value in graph.graph.inputs] == ["input"]


def test_a_graph_that_states_no_inner_shapes_folds(tmp_path: Path) -> None:
    def doubled(model: onnx.ModelProto) -> None:
        second = helper.make_node("Conv", ["input", "w1"], ["f2"], pads=[1, 1, 1, 1])
        total = helper.make_node("Add", ["f1", "f2"], ["f"])
        model.graph.node[0].output[0] = "f1"
        nodes = [second, model.graph.node[0], total, *model.graph.node[1:]]
        ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(ordered)

    deployment = deploy_file(write(tmp_path / "two.onnx", doubled))

    (site,) = deployment.report.sites
    assert (site.convolutions_before, site.convolutions_after) == (2, 1)
    assert deployment.after.convolutions == 2


def test_settings_reach_a_network_of_the_catalogue(tmp_path: Path) -> None:
    torch.save(SPAN(channels=8, img_range=1.0).state_dict(), tmp_path / "span.pth")

    one, _ = network_source(tmp_path / "span.pth", network_args={"img_range": 1.0})
    other, _ = network_source(tmp_path / "span.pth")

    x = torch.rand(1, 3, 6, 7)
    with torch.inference_mode():
        assert not torch.equal(one.module(x), other.module(x))


def test_a_setting_that_a_network_does_not_have_is_named(tmp_path: Path) -> None:
    torch.save(SPAN(channels=8).state_dict(), tmp_path / "span.pth")

    with pytest.raises(CheckpointError, match="has no setting upscale"):
        network_source(tmp_path / "span.pth", network_args={"upscale": 4})
