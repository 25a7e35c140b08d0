"""The shared blocks against plain calculations of what they stand for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from espan_deploy.networks.blocks import (
    ESA,
    ESA_MIN_SIZE,
    SPAB,
    Conv3XC,
    EvalConv,
    LoRAConv,
    Normalise,
    bias_padded,
    stale_keys,
)

EXACT = 1e-12
"""Float64, another order of the same few sums."""


def test_bias_padded_is_the_bias_written_into_the_ring() -> None:
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 5, 7), (4, 3, 1, 1), (4,)))
    expected = bias.view(1, -1, 1, 1).repeat(2, 1, 7, 9)
    expected[:, :, 1:-1, 1:-1] = F.conv2d(x, weight, bias)

    assert (bias_padded(x, weight, bias) - expected).abs().max() <= EXACT


@pytest.mark.parametrize("bias", [True, False])
def test_conv3xc_is_one_convolution_border_included(bias: bool) -> None:
    block = Conv3XC(3, 4, bias=bias).double()
    with torch.no_grad():
        constant = block(torch.zeros(1, 3, 5, 5, dtype=torch.float64))[0, :, 0, 0]
        impulses = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
        impulses[range(3), range(3), 1, 1] = 1
        kernel = (block(impulses) - constant.view(1, -1, 1, 1)).flip(2, 3).transpose(0, 1)
        x = torch.randn(2, 3, 6, 5, dtype=torch.float64)

        assert (block(x) - F.conv2d(x, kernel, constant, padding=1)).abs().max() <= EXACT


def test_a_low_rank_update_changes_only_the_weight() -> None:
    block = LoRAConv(3, 4, 3, rank=2)
    x = torch.randn(1, 3, 6, 5)
    assert torch.equal(block(x), F.conv2d(x, block.weight, block.bias, padding=1))

    torch.nn.init.normal_(block.lora_B)
    update = 2 * (block.lora_B @ block.lora_A).view(4, 3, 3, 3)

    torch.testing.assert_close(block(x), F.conv2d(x, block.weight + update, block.bias, padding=1))


def test_spab_attends_only_where_the_channels_stay() -> None:
    x = torch.randn(1, 4, 6, 5)
    same, wider = SPAB(EvalConv, 4), SPAB(EvalConv, 4, 8, 8)

    def features(block: SPAB) -> torch.Tensor:
        c1, c2, c3 = (block.get_submodule(f"c{i}_r") for i in (1, 2, 3))
        out: torch.Tensor = c3(F.silu(c2(F.silu(c1(x)))))
        return out

    torch.testing.assert_close(wider(x), features(wider))
    torch.testing.assert_close(same(x), (features(same) + x) * (features(same).sigmoid() - 0.5))


def test_normalisation_has_no_keys() -> None:
    block = Normalise(2.0, (0.1, 0.2, 0.3))

    assert not block.state_dict()
    torch.testing.assert_close(block(torch.full((1, 3, 1, 1), 0.5)).flatten(), torch.tensor([0.8, 0.6, 0.4]))


def test_esa_takes_its_smallest_size_and_no_smaller() -> None:
    esa = ESA(8, 4, torch.nn.Conv2d(4, 4, 3, padding=1), skip_conv=True)

    assert esa(torch.rand(1, 8, ESA_MIN_SIZE, ESA_MIN_SIZE + 3)).shape == (1, 8, ESA_MIN_SIZE, ESA_MIN_SIZE + 3)
    with pytest.raises(RuntimeError):
        esa(torch.rand(1, 8, ESA_MIN_SIZE - 1, ESA_MIN_SIZE))


def test_stale_keys_are_those_with_branches_beside_them() -> None:
    shapes = {"a.eval_conv.weight": (1,), "a.eval_conv.bias": (1,), "a.sk.weight": (1,), "b.eval_conv.weight": (1,)}

    assert stale_keys(shapes) == {"a.eval_conv.weight", "a.eval_conv.bias"}
