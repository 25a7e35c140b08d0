"""The selective scan as it is exported: loops that engines run, beside the same scan in PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from sized import STRUCTURES
from torch import Tensor, nn

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.fold import fold
from espan_deploy.graph import SizedGraph, reach
from espan_deploy.graph.selective_scan import SCAN_DOMAIN
from espan_deploy.networks.scans.blocks import RUN, SelectiveScan
from espan_deploy.onnx_export import onnx_from_module
from espan_deploy.precision.half import to_half

FLOAT32 = 1e-5
"""Relative to the largest value: float32, summed by other kernels."""

SIZES = ((1, 1, 1), (1, 7, RUN // 8), (2, 8, RUN // 8), (1, 5, RUN // 4 + 1), (2, 29, 41))
"""Batch, height and width: a pixel, less than a run, a whole one, a little more, and many."""


class BothWays(nn.Module):
    """Rows forwards and backwards, two groups of three channels, with long memories and short ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scan = SelectiveScan(2, 3, 5, 2)
        nn.init.uniform_(self.scan.dt_projs_bias, -6, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)
        scanned = self.scan.scanned(torch.stack([rows, rows.flip(2)], 1))
        return (scanned[:, 0] + scanned[:, 1].flip(2)).reshape(x.shape)


@pytest.fixture
def scanned() -> tuple[nn.Module, ir.Model]:
    torch.manual_seed(15)
    module = BothWays().eval()
    return module, onnx_from_module(module)


def test_what_is_exported_is_the_scan(scanned: tuple[nn.Module, ir.Model]) -> None:
    module, model = scanned
    folded = ir.to_proto(fold(model).model)
    evaluators = [GraphEvaluator(ir.to_proto(model)), GraphEvaluator(folded)]

    assert SCAN_DOMAIN not in {entry.domain for entry in folded.opset_import}
    assert sum(node.op_type == "Scan" for node in folded.graph.node) == 3
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            expected = module(x).numpy()
        for evaluator in evaluators:
            assert np.abs(evaluator.run(x.numpy())[0] - expected).max() <= FLOAT32 * np.abs(expected).max()


def test_a_scan_sees_the_whole_image() -> None:
    torch.manual_seed(0)

    found = reach(SizedGraph(onnx_from_module(STRUCTURES["scanned"][0]().eval())))

    assert found.halo is None
    assert "Scan" in found.why
    assert "sees the whole image" in found.why


def test_in_half_precision_the_loops_stay_in_float(scanned: tuple[nn.Module, ir.Model]) -> None:
    module, model = scanned
    torch.manual_seed(1)
    x = torch.rand(1, 3, 24, 20)

    half = to_half(ir.to_proto(model))

    onnx.checker.check_model(half.model, full_check=True)
    kept = {node.op_type for node in half.model.graph.node if node.name in half.fp32_nodes}
    assert "Scan" in kept
    with torch.no_grad():
        expected = module(x).numpy()
    got = GraphEvaluator(half.model).run(x.numpy())[0]
    assert np.abs(got - expected).max() <= 1e-2 * np.abs(expected).max()
    assert np.abs(got - expected).max() > 0
