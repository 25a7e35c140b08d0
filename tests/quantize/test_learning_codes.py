"""The gradient through codes, written out, against the same in single steps."""

from __future__ import annotations

import numpy as np
import pytest

from espan_deploy.quantize.arithmetic import ActivationCodes

torch = pytest.importorskip("torch")

from espan_deploy.quantize.learn import _passing_codes  # noqa: E402

EXACT = 1e-4
"""Relative: both sum the same float32 values in another order, and they nearly cancel."""


@pytest.mark.parametrize("shift", [0.0, 0.25])
@pytest.mark.parametrize("codes", [ActivationCodes(0.02, 30), ActivationCodes(0.02, 0, "signed")])
def test_gradients_are_those_of_single_steps(codes: ActivationCodes, shift: float) -> None:
    rng = np.random.default_rng(0)
    values = torch.tensor(rng.normal(0, 3, (2, 4, 6, 5)).astype(np.float32))
    smoothing = torch.tensor([1.0, 0.5, 2.0, 0.25]).view(1, -1, 1, 1)
    weights = torch.tensor(rng.normal(size=values.shape).astype(np.float32))
    through, ends = _passing_codes(), (codes.low - codes.zero_point, codes.high - codes.zero_point, shift)

    def steps(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        fine = x / smoothing / scale
        rounded = fine + ((fine + shift).round() - fine).detach()
        whole = torch.clamp(rounded + codes.zero_point, codes.low, codes.high)
        return (whole - codes.zero_point) * scale

    found = []
    for function in (steps, lambda x, scale: through(x, smoothing, scale, ends)):
        x, scale = values.clone().requires_grad_(), torch.tensor(codes.scale, requires_grad=True)
        result = function(x, scale)
        (result * weights).sum().backward()
        found.append((result.detach(), x.grad, scale.grad))
    clipped = (found[0][1] == 0).float().mean()
    assert 0.1 < clipped < 0.9
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT * float(one.abs().max()))
