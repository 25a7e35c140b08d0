"""What a graph costs, against counts made by hand and by torch."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from espan_deploy.fold import fold
from espan_deploy.graph import SizedGraph, complexity
from espan_deploy.networks.rlfn.efdn import EFDN
from espan_deploy.networks.rlfn.rlfn import RLFN
from espan_deploy.networks.span.espan import ESPAN
from espan_deploy.networks.span.span import SPAN
from espan_deploy.onnx_export import onnx_from_module


def test_espan_as_published_and_folded() -> None:
    model = onnx_from_module(ESPAN().eval())

    cost = complexity(SizedGraph(model))
    folded = complexity(SizedGraph(fold(model).model))

    assert (cost.parameters, cost.multiply_adds, cost.convolutions) == (192_272, 12_555_649_024, 21)
    # The last convolution reads the concatenation: its 3x3 and the 1x1's 32 columns for it become one 3x3.
    assert folded.multiply_adds == 12_555_649_024 - 2048 * 256 * 256
    assert folded.convolutions == 21


def test_the_mean_of_the_image_is_no_parameter_and_a_missing_bias_stays_missing() -> None:
    span = SPAN(channels=8, blocks=3).eval()
    learnt = sum(p.numel() for p in span.parameters())
    assert complexity(SizedGraph(onnx_from_module(span))).parameters == learnt

    without = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 3, 1, bias=False)).eval()
    model = onnx_from_module(without)
    costs = [complexity(SizedGraph(each)) for each in (model, fold(model).model)]
    assert [cost.parameters for cost in costs] == [8 * 27 + 24] * 2


LAYERS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
    # parameters, multiply-adds and activations for 8x10 pixels
    "3x3": (lambda: nn.Conv2d(3, 12, 3, padding=1), 12 * 27 + 12, 80 * 12 * 27, 80 * 12),
    "grouped": (lambda: nn.Conv2d(3, 12, 3, padding=1, groups=3), 12 * 9 + 12, 80 * 12 * 9, 80 * 12),
    "strided": (lambda: nn.Conv2d(3, 12, 2, stride=2), 12 * 12 + 12, 20 * 12 * 12, 20 * 12),
    "transposed": (lambda: nn.ConvTranspose2d(3, 12, 4, stride=2, padding=1), 3 * 12 * 16 + 12, 80 * 3 * 12 * 16, 3840),
    "no bias": (lambda: nn.Conv2d(3, 5, 1, bias=False), 15, 80 * 15, 400),
}


@pytest.mark.parametrize("name", LAYERS)
def test_single_layer(name: str) -> None:
    make, parameters, multiply_adds, activations = LAYERS[name]

    cost = complexity(SizedGraph(onnx_from_module(make().eval())), 8, 10)

    assert (cost.parameters, cost.multiply_adds, cost.activations) == (parameters, multiply_adds, activations)
    assert (cost.height, cost.width) == (8, 10)


def test_pointwise_layers_as_matrix_products() -> None:
    class Pointwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    cost = complexity(SizedGraph(onnx_from_module(Pointwise())), 8, 10)

    assert (cost.multiply_adds, cost.activations, cost.convolutions) == (80 * 21, 80 * 7, 0)


POOLED: dict[str, Callable[[], nn.Module]] = {"efdn": lambda: EFDN(channels=8), "dipnet-slim": RLFN}


@pytest.mark.parametrize("name", POOLED)
def test_pooling_and_resizing_networks_count_as_torch_counts_them(name: str) -> None:
    module = POOLED[name]().eval()
    model = onnx_from_module(module)

    for height, width in ((64, 64), (45, 70)):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            module(torch.zeros(1, 3, height, width))
        assert complexity(SizedGraph(model), height, width).multiply_adds == counter.get_total_flops() // 2


def test_a_size_that_depends_on_pixels_is_unknown() -> None:
    nodes = [
        helper.make_node("NonZero", ["input"], ["places"]),
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["w", "floats"], ["output"], name="product"),
    ]
    weight = numpy_helper.from_array(torch.rand(2, 4).numpy(), "w")
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, "h", "w"])
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "g", [image], [out], [weight]))

    cost = complexity(SizedGraph(ir.from_proto(model)))

    assert (cost.multiply_adds, cost.activations, cost.parameters) == (None, None, 8)
    assert [layer.macs for layer in cost.layers] == [None]
