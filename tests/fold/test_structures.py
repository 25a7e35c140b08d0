"""Every re-parameterised structure folds to one convolution, exactly; what is none is left, and the reason said."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from structures import BORDER_ONLY, FOLDING, REFUSED, SHRINKING, Network, build
from torch.nn import functional as F

from espan_deploy.fold import FoldResult, fold
from espan_deploy.onnx_export import onnx_from_module

EXACT = 1e-12
"""Float64, relative to the largest value: what the fold promises."""

FLOAT32 = 2e-5
"""Two float32 computations of a few hundred terms in another order, relative to the largest value."""

SIZES = ((1, 1), (1, 9), (11, 1), (7, 5), (12, 13))
SHRINKING_SIZES = ((3, 3), (3, 9), (11, 4))


@cache
def folded(name: str, borders: str = "exact") -> tuple[Network, ir.Model, FoldResult]:
    make = FOLDING.get(name) or BORDER_ONLY.get(name) or REFUSED[name][0]
    network = Network(build(make)).eval()
    model = onnx_from_module(network)
    return network, model, fold(model, borders="approximate" if borders == "approximate" else "exact")


def convolution_after_relu(model: ir.Model, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What the folded block makes of features x, calculated by torch, and how far its kernel pads."""
    head, relu, block = model.graph
    assert (head.op_type, relu.op_type, block.op_type) == ("Conv", "Relu", "Conv")
    attributes = {name: attribute.value for name, attribute in block.attributes.items()}
    weight, *bias = (torch.from_numpy(v.const_value.numpy()) for v in block.inputs[1:] if v and v.const_value)
    top, left, bottom, right = attributes["pads"]
    padded = F.pad(x, (left, right, top, bottom))
    out = F.conv2d(padded, weight, *bias, dilation=attributes["dilations"], groups=attributes["group"])
    return out, max(top, left, bottom, right)


def errors(got: NDArray[np.float64], expected: NDArray[np.float64], ring: int) -> tuple[float, float]:
    """Largest errors inside and in the ring around, relative to the largest value."""
    error = np.abs(got - expected) / np.abs(expected).max()
    inside = np.zeros(error.shape[2:], bool)
    inside[ring : error.shape[2] - ring, ring : error.shape[3] - ring] = True
    return error[..., inside].max(initial=0.0), error[..., ~inside].max(initial=0.0)


@pytest.mark.parametrize("name", FOLDING)
def test_structure_is_one_convolution(name: str) -> None:
    _, _, result = folded(name)
    block = build(FOLDING[name]).double()
    random = torch.Generator().manual_seed(1)

    for height, width in SHRINKING_SIZES if name in SHRINKING else SIZES:
        x = torch.randn(2, 6, height, width, dtype=torch.float64, generator=random)
        with torch.inference_mode():
            expected = block(x)
            got, ring = convolution_after_relu(result.model_float64, x)
        assert got.shape == expected.shape
        inside, border = errors(got.numpy(), expected.numpy(), ring)
        assert inside <= EXACT, f"{name} differs inside at {height}x{width}"
        assert border <= EXACT, f"{name} differs at the border at {height}x{width}"
    assert all(site.exact and max(site.error_inside, site.error_border) <= EXACT for site in result.report.sites)


@pytest.mark.parametrize("name", FOLDING)
def test_float32_graph_is_the_network(name: str) -> None:
    network, model, result = folded(name)
    session = onnxruntime.InferenceSession(ir.to_proto(result.model).SerializeToString())
    x = torch.rand(2, 3, 8, 11, generator=torch.Generator().manual_seed(2))

    (got,) = session.run(None, {model.graph.inputs[0].name: x.numpy()})

    with torch.inference_mode():
        expected = network(x).numpy()
    assert np.abs(got - expected).max() <= FLOAT32 * np.abs(expected).max()


def test_site_names_the_module_and_counts_what_went() -> None:
    _, _, result = folded("ecb")

    (site,) = result.report.sites
    assert site.path == "block.branches"
    assert (site.convolutions_before, site.convolutions_after, site.kernels) == (9, 1, ("3x3 6->6",))
    # 3x3, 1x1 and 3x3 of twice the width, then three times a 1x1 and a filter per channel.
    assert site.multiply_adds_before == 36 * 9 + (72 + 72 * 9) + 3 * (36 + 6 * 9)
    assert site.multiply_adds_after == 36 * 9


@pytest.mark.parametrize("name", BORDER_ONLY)
def test_what_differs_only_at_the_border_is_left_and_said_to(name: str) -> None:
    _, _, result = folded(name)

    assert not result.report.sites
    assert [refusal.path for refusal in result.report.refusals if "image's border" in refusal.reason]


@pytest.mark.parametrize("name", BORDER_ONLY)
def test_approximate_borders_fold_it_and_report_the_error(name: str) -> None:
    _, _, result = folded(name, "approximate")

    (site,) = result.report.sites
    assert not site.exact
    assert site.error_inside <= EXACT < site.error_border
    block, x = build(BORDER_ONLY[name]).double(), torch.randn(1, 6, 14, 12, dtype=torch.float64)
    with torch.inference_mode():
        got, ring = convolution_after_relu(result.model_float64, x)
        inside, border = errors(got.numpy(), block(x).numpy(), ring)
    assert inside <= EXACT < border


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_single_convolution_is_left_with_its_reason(name: str) -> None:
    _, model, result = folded(name)

    assert not result.report.sites
    reasons = [refusal.reason for refusal in result.report.refusals]
    assert any(REFUSED[name][1] in reason for reason in reasons), reasons
    kept = [node.op_type for node in result.model.graph]
    assert kept.count("Conv") == sum(node.op_type == "Conv" for node in model.graph)


def test_the_model_given_is_left_alone() -> None:
    _, model, _ = folded("repvgg")

    before = ir.to_proto(model).SerializeToString()
    fold(model)

    assert ir.to_proto(model).SerializeToString() == before
