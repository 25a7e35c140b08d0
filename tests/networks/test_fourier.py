"""The transforms written as matrix products against PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from espan_deploy.networks.fourier.blocks import irfft2, rfft2
from espan_deploy.networks.fourier.fsanet import SEGMENTS, SegmentGain
from espan_deploy.networks.fourier.sfnet import discs

EXACT = 1e-13
"""Float64, some hundred products a sum."""

SIZES = [(8, 8), (7, 9), (1, 1), (5, 2), (37, 52)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_transform(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)

    real, imaginary = rfft2(x)

    expected = torch.fft.rfft2(x, norm="ortho")
    assert (torch.complex(real, imaginary) - expected).abs().max() <= EXACT


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_inverse_of_any_spectrum(height: int, width: int) -> None:
    """Also of one that no real image has: a network changes it as it likes."""
    real, imaginary = torch.randn(2, 2, 3, height, width // 2 + 1, dtype=torch.float64)

    expected = torch.fft.irfft2(torch.complex(real, imaginary), s=(height, width), norm="ortho")
    assert (irfft2((real, imaginary), height, width) - expected).abs().max() <= EXACT


def test_segments_are_a_grid_of_five_by_five_rounded_up() -> None:
    gain = SegmentGain(1)
    conv = gain.get_submodule("convs.0.0")
    assert isinstance(conv, torch.nn.Conv2d)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(SEGMENTS**2).view(-1, 1, 1, 1))
        factors = gain(torch.ones(1, 1, 11, 10))[0, 0] - 1

    assert factors[:, 0].tolist() == [0, 0, 0, 5, 5, 5, 10, 10, 10, 15, 15]  # three to a segment, the last left out
    assert factors[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_discs_stand_in_the_middle_of_the_half_spectrum() -> None:
    inner, ring = discs(16, 20, torch.zeros(()))

    distance = torch.tensor([[((y - 8) ** 2 + (x - 10) ** 2) ** 0.5 for x in range(11)] for y in range(16)])
    assert torch.equal(inner, (distance <= 2).float())
    assert torch.equal(ring, ((distance > 2) & (distance <= 4)).float())
