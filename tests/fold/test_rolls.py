"""A roll by more than the bench is large measures as nothing there: it must stay in the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from espan_deploy.fold import fold
from espan_deploy.onnx_export import onnx_from_module

FLOAT32 = 2e-5


class Rolled(nn.Module):
    """A roll along some axes between two layers that a fold would like to make one of."""

    def __init__(self, shift: int, axes: tuple[int, ...], *, channels_last: bool) -> None:
        super().__init__()
        self.shift, self.axes, self.channels_last = shift, axes, channels_last
        self.first, self.mix, self.last = nn.Conv2d(3, 6, 1), nn.Linear(6, 6), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.channels_last:
            return self.last(self.mix(self._rolled(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))
        x = self._rolled(x)
        return self.last(nn.functional.conv2d(x, self.mix.weight[:, :, None, None], self.mix.bias))

    def _rolled(self, x: Tensor) -> Tensor:
        for axis in self.axes:
            index: list[slice] = [slice(None)] * axis
            x = torch.cat([x[(*index, slice(self.shift, None))], x[(*index, slice(None, self.shift))]], axis)
        return x


@pytest.mark.parametrize("shift", [-8, 8, -3])
@pytest.mark.parametrize(("axes", "channels_last"), [((2, 3), False), ((2,), False), ((1, 2), True), ((1,), True)])
def test_a_roll_is_kept(shift: int, axes: tuple[int, ...], channels_last: bool) -> None:
    torch.manual_seed(0)
    network = Rolled(shift, axes, channels_last=channels_last).eval()
    model = onnx_from_module(network)
    result = fold(model)
    session = onnxruntime.InferenceSession(ir.to_proto(result.model).SerializeToString())
    for height, width in ((17, 24), (40, 33)):
        x = torch.rand(1, 3, height, width)
        (got,) = session.run(None, {model.graph.inputs[0].name: x.numpy()})
        with torch.inference_mode():
            expected = network(x).numpy()
        assert np.abs(got - expected).max() <= FLOAT32 * np.abs(expected).max(), (height, width)
