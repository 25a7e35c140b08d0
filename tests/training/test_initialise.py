import math
from itertools import pairwise

import pytest
import torch
from made_up import picture
from torch.nn import functional as F

from training.initialise import RESIDUAL_SCALE, bilinear_kernel, initialise
from training.merge import rep_convs
from training.network import BLOCKS, TrainingNetwork


@pytest.fixture
def crops() -> torch.Tensor:
    return torch.stack([torch.from_numpy(picture(32, 32, seed)) for seed in range(4)]).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("scale", [2, 4])
def test_bilinear_kernel_is_bilinear_interpolation(crops: torch.Tensor, scale: int) -> None:
    ours = F.pixel_shuffle(F.conv2d(crops, bilinear_kernel(3 * scale**2), padding=1), scale)
    theirs = F.interpolate(crops, scale_factor=scale, mode="bilinear")
    inner = (..., slice(scale, -scale), slice(scale, -scale))
    torch.testing.assert_close(ours[inner], theirs[inner])


@pytest.mark.parametrize("scale", [2, 4])
def test_training_starts_at_interpolation(crops: torch.Tensor, scale: int) -> None:
    torch.manual_seed(0)
    network = TrainingNetwork(scale=scale, extra_blocks=1, student=True)
    initialise(network, crops)
    interpolated = F.interpolate(crops, scale_factor=scale, mode="bilinear")
    inner = (..., slice(8, -8), slice(8, -8))
    with torch.no_grad():
        outputs = network(crops)
    for output in outputs:
        residual = (F.pixel_shuffle(output, scale) - interpolated)[inner]
        assert float(residual.std()) < 2 * RESIDUAL_SCALE
        assert abs(float(residual.mean())) < RESIDUAL_SCALE


@torch.no_grad()
def test_no_block_lets_the_signal_die(crops: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = TrainingNetwork(scale=4)
    assert math.prod(block_gains(network, crops)) < 0.05  # as torch initialises, little is left of the signal

    initialise(network, crops)
    assert block_gains(network, crops) == pytest.approx([1] * BLOCKS, rel=0.05)


def block_gains(network: TrainingNetwork, crops: torch.Tensor) -> list[float]:
    """Of each block, the standard deviation of its output over its input's."""
    features = [network.espan.conv_1(crops)]
    for i in range(BLOCKS):
        features.append(network.espan.get_submodule(f"block_{i + 1}")(features[-1]))
    deviations = [float(feature.std()) for feature in features]
    return [after / before for before, after in pairwise(deviations)]


def test_branches_are_silent_but_not_dead(crops: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = TrainingNetwork(scale=4)
    initialise(network, crops)
    network.image(crops).square().mean().backward()
    for module in rep_convs(network).values():
        assert not module.pointwise.weight.any()
        for chain in module.chains:
            assert not chain[1].weight.any()
            assert chain[1].weight.grad.any()
