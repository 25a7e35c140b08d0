"""Grids of a computed size against PyTorch's own, and the exported graph against both, at sizes they do not divide."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.grids import adaptive_avg_pool, adaptive_max_pool, resize_nearest, windows
from espan_deploy.onnx_export import onnx_from_module

SIZES = ((24, 20), (16, 16), (17, 31), (23, 39), (65, 64), (99, 130))
"""(24, 20) is what the exporter traces at; the others leave remainders of every kind."""

ROUNDING = 1e-6
"""Float32 means of numbers about 1, summed in another order."""

INTERPOLATION = 2e-5
"""ONNX Runtime computes a bilinear position in another order: an error of float32 times the number of pixels."""


class Grid(nn.Module):
    def __init__(self, calculate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.calculate = calculate

    def forward(self, x: Tensor) -> Tensor:
        return self.calculate(x)


def image(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))


def exported(calculate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph = ir.to_proto(onnx_from_module(Grid(calculate))).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("divisor", [2, 5, 7, 8, 16])
def test_adaptive_pooling_is_pytorch_s(divisor: int) -> None:
    for height, width in (*SIZES, (divisor, 2 * divisor - 1)):
        if min(height, width) < divisor:
            continue
        x, grid = image(height, width), (height // divisor, width // divisor)
        assert torch.equal(adaptive_max_pool(x, divisor), F.adaptive_max_pool2d(x, grid))
        torch.testing.assert_close(
            adaptive_avg_pool(x, divisor), F.adaptive_avg_pool2d(x, grid), atol=ROUNDING, rtol=ROUNDING
        )


def test_a_pixel_of_an_enlarged_image_is_that_of_its_place() -> None:
    x = image(5, 7)

    rows = [position * 5 // 33 for position in range(33)]
    columns = [position * 7 // 50 for position in range(50)]

    assert torch.equal(resize_nearest(x, 33, 50), x[:, :, rows][:, :, :, columns])


@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_nearest_from_a_grid_of_powers_of_two_is_pytorch_s(divisor: int) -> None:
    for size in range(divisor, 700):
        x = torch.arange(size // divisor, dtype=torch.float32).view(1, 1, -1, 1)
        assert torch.equal(resize_nearest(x, size, 1), F.interpolate(x, size=(size, 1), mode="nearest")), size


@pytest.mark.parametrize("axis", [2, 3])
def test_windows_are_pytorch_s_unfold(axis: int) -> None:
    x, starts = image(20, 23), torch.arange(4) * 3

    expected = x.unfold(axis, 7, 3)[(slice(None),) * axis + (slice(4),)].movedim(-1, axis + 1)

    assert torch.equal(windows(x, axis, starts, 7), expected)


@pytest.mark.parametrize("divisor", [8, 16])
def test_the_exported_graph_is_right_at_every_size(divisor: int) -> None:
    def there_and_back(x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        coarse = F.interpolate(adaptive_avg_pool(x, divisor), size=(height, width), mode="bilinear")
        return resize_nearest(adaptive_max_pool(x, divisor), height, width) + coarse

    run = exported(there_and_back)

    for height, width in SIZES:
        x = image(height, width)
        torch.testing.assert_close(run(x), there_and_back(x), atol=INTERPOLATION, rtol=0)


def test_windows_of_a_computed_length_export() -> None:
    def last_of_each_window(x: Tensor) -> Tensor:
        length = torch.sym_min(x.shape[2], 9)
        starts = torch.arange(2) * (x.shape[2] - length)
        return windows(windows(x, 2, starts, length).sum(3), 3, torch.arange(3) * 2, 5).amax(4)

    run = exported(last_of_each_window)

    for height, width in (*SIZES, (7, 9)):
        x = image(height, width)
        torch.testing.assert_close(run(x), last_of_each_window(x), atol=1e-5, rtol=ROUNDING)
