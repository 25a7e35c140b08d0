"""What single crops' activations grow beyond the others' is seen, and learnt away."""

import torch
from torch import nn

from training.network import GROWTH, TrainingNetwork, excess_of


def test_crops_alike_have_no_excess() -> None:
    assert excess_of([torch.rand(1, 8, 6, 6).expand(4, -1, -1, -1), torch.zeros(4, 2, 3, 3)]) == 0


def test_what_one_crop_has_more_counts_and_nothing_else_learns_from_it() -> None:
    plain = torch.full((5, 2, 4, 4), 2.0)
    plain[3, 1, 0, 0] = -2.0 * GROWTH * 3
    feature = plain.requires_grad_()

    excess = excess_of([feature])
    excess.backward()

    torch.testing.assert_close(excess.detach(), torch.tensor(2.0 / plain.numel()))
    assert feature.grad is not None
    assert feature.grad.nonzero().tolist() == [[3, 1, 0, 0]]
    assert feature.grad[3, 1, 0, 0] < 0


def test_a_network_that_is_limited_gives_the_same_pictures_and_says_its_excess() -> None:
    torch.manual_seed(0)
    free, limited = TrainingNetwork(scale=4), TrainingNetwork(scale=4, limited=True)
    limited.load_state_dict(free.state_dict())
    for network in (free, limited):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
    batch = torch.rand(4, 3, 12, 12)
    batch[2] *= 50

    assert torch.equal(free(batch)[0], limited(batch)[0])
    assert free.excess == 0
    assert limited.excess > 0.1
    limited.excess.backward()
    assert all(p.grad is not None for p in limited.espan.block_1.parameters() if p.ndim > 1)
