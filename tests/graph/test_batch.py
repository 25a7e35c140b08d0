"""A graph whose batch was fixed, with any batch: where shapes tell, and where only running it can."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.facts import Takes, find_max_batch
from espan_deploy.graph.batch import with_free_batch
from espan_deploy.onnx_export import onnx_from_module

SAME = 1e-5
"""Float32, in kernels of another batch, relative to the largest value."""


def run(model: ir.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(
        None, {"input": x}
    )[0]
    return result


class Gated(nn.Module):
    """A gate for each channel, whose way back to an image is a reshape to (batch, channels, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.tail = nn.Linear(3, 3), nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.linear(x.mean((2, 3)))).view(x.shape[0], 3, 1, 1)
        return F.pixel_shuffle(self.tail(x * gate), 2)


def test_images_of_a_freed_batch_are_what_each_is_alone() -> None:
    torch.manual_seed(0)
    fixed = onnx_from_module(Gated().eval(), any_batch=False)
    x = np.random.default_rng(0).random((3, 3, 17, 22), np.float32)
    with pytest.raises(Exception, match=r"(?i)invalid dimensions|expected: 1"):
        run(fixed, x)

    together = run(with_free_batch(fixed), x)

    alone = np.concatenate([run(fixed, image[None]) for image in x])
    assert np.abs(together - alone).max() <= SAME * np.abs(alone).max()
    assert fixed.graph.inputs[0].shape is not None
    assert fixed.graph.inputs[0].shape[0] == 1, "the graph itself stays as it was"


def graph_of(*nodes: tuple[str, list[str], str], **constants: list[int]) -> ir.Model:
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    made = [helper.make_node(op_type, inputs, [output]) for op_type, inputs, output in nodes]
    weights = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    graph = helper.make_graph(made, "g", [image], [out], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_only_a_reshape_that_begins_with_the_batch_is_freed() -> None:
    """(1, 3, -1) begins with it; (-1, 1) does not, whatever follows."""
    model = graph_of(
        ("Reshape", ["input", "first"], "a"), ("Reshape", ["a", "second"], "output"), first=[1, 3, -1], second=[-1, 1]
    )
    x = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)

    assert np.array_equal(run(with_free_batch(model), x), x.reshape(-1, 1))


def test_a_batch_hidden_in_what_is_computed_is_found_by_running() -> None:
    doubling, takes = with_free_batch(graph_of(("Add", ["input", "input"], "output"))), Takes(1)
    fixed = summing()
    freed = with_free_batch(fixed)

    assert find_max_batch(lambda x: run(doubling, x), takes) is None
    assert find_max_batch(lambda x: run(freed, x), takes, alone=lambda x: run(fixed, x)) == 1


def summing() -> ir.Model:
    """Adds to each image the sum over the batch."""
    return graph_of(("ReduceSum", ["input", "axes"], "sum"), ("Add", ["input", "sum"], "output"), axes=[0])
