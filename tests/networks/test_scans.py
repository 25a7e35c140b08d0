"""The selective scan against the plain recurrence, gates open, and what stands around it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.checkpoints import Checkpoint
from espan_deploy.networks import load_network
from espan_deploy.networks.scans.blocks import selective_scan
from espan_deploy.networks.scans.dwmamba import haar, haar_inverse
from espan_deploy.networks.scans.mambairv2 import AttentiveScan, base, mambairv2
from espan_deploy.networks.scans.spanmamba import SPANMamba
from espan_deploy.networks.swinir import ConvFFN

EXACT = 1e-12
"""Float64: the same sums in another order."""


def plain_scan(x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor) -> Tensor:
    state = torch.zeros(*x.shape[:3], rate.shape[2], dtype=x.dtype)
    outputs = []
    for i in range(x.shape[3]):
        state = torch.exp(step[..., i, None] * rate) * state
        state = state + (step * x)[..., i, None] * write[:, :, None, :, i]
        outputs.append((state * read[:, :, None, :, i]).sum(3))
    return torch.stack(outputs, 3)


@pytest.mark.parametrize("length", [1, 17, 256, 257, 1500])
def test_the_scan_is_the_recurrence(length: int) -> None:
    torch.manual_seed(length)
    random = torch.randn(2, 3, 9, length, dtype=torch.float64)
    x, write, read = random[:, :, :3], random[:, :, 3:6], random[:, :, 6:]
    step = F.softplus(torch.randn(2, 3, 3, length, dtype=torch.float64) - 2)
    rate = -torch.rand(3, 3, 3, dtype=torch.float64) * 4

    expected = plain_scan(x, step, rate, write, read)

    assert (selective_scan(x, step, rate, write, read) - expected).abs().max() <= EXACT * expected.abs().max()


def test_mamba_with_its_gates_open_is_the_plain_one() -> None:
    torch.manual_seed(3)
    network = SPANMamba(channels=6, width=5, inner=8, state=4, rank=2, blocks=1).double().eval()
    gate = network.get_submodule("block_1.mamba_gate")
    output = gate.get_submodule("out_proj")
    assert isinstance(output, nn.Conv2d)
    nn.init.normal_(output.weight)
    mamba = gate.get_submodule("mamba")
    x = torch.randn(2, 37, 5, dtype=torch.float64)
    part = mamba.get_submodule
    inner, before = part("in_proj")(x).split(8, 2)[0].transpose(1, 2), 3
    causal = F.silu(part("conv1d")(F.pad(inner, (before, 0))))
    step, write, read = part("x_proj")(causal.transpose(1, 2)).split([2, 4, 4], 2)
    step = F.softplus(part("dt_proj")(step)).transpose(1, 2)
    rate = -torch.exp(mamba.get_parameter("A_log"))[None]
    scanned = plain_scan(
        causal[:, None], step[:, None], rate, write.transpose(1, 2)[:, None], read.transpose(1, 2)[:, None]
    )[:, 0]
    y = (scanned + mamba.get_parameter("D")[:, None] * causal).transpose(1, 2)
    expected = part("out_proj")(y * F.silu(part("in_proj")(x)[..., 8:]))

    assert (mamba(x) - expected).abs().max() <= EXACT * expected.abs().max()
    images = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    opened = network(images)
    nn.init.zeros_(output.weight)
    assert (network(images) - opened).abs().max() > 1e-3


def test_pixels_are_scanned_by_prompt_and_put_back() -> None:
    torch.manual_seed(5)
    layer = AttentiveScan(4, 4, 3, 2, (5, 2)).double().eval()
    scores, features = torch.randn(1, 5, 42).double(), torch.randn(1, 4, 6, 7).double()
    factor = torch.randn(2, 3).double()
    chosen = scores[0].argmax(0)
    order = sorted(range(42), key=lambda i: (int(chosen[i]), i))
    prompt = (layer.embeddingB.weight @ factor)[chosen]

    got = layer.in_order_of(scores, features, factor, sorted_prompts=False)

    flat = features.flatten(2)
    scanned = torch.empty_like(flat)
    scanned[:, :, order] = layer.selectiveScan(flat[:, :, order], prompt[None])
    expected = layer.out_proj(layer.out_norm(scanned.reshape(1, 4, 6, 7)))
    assert (got - expected).abs().max() <= EXACT * expected.abs().max()


def test_the_wavelet_is_undone() -> None:
    x = torch.randn(2, 3, 6, 8)

    low, high = haar(x)

    torch.testing.assert_close(low[0, 0, 0, 0], x[0, 0, :2, :2].sum() / 2)
    torch.testing.assert_close(haar_inverse(low, torch.cat(high, 1)), x)


def test_the_classical_mambairv2_is_read_from_shapes_too() -> None:
    torch.manual_seed(0)
    module = mambairv2(
        channels=8, heads=2, window=8, hidden=12, inner=10, depths=(1,), feed_forward=ConvFFN, tail_channels=6
    ).eval()

    network = load_network(Checkpoint(Path("classical.pth"), "", module.state_dict()))

    images = torch.rand(1, 3, 9, 11)
    assert network.scale == 4
    assert torch.equal(network.module(images), module(images))


def test_the_base_network_has_the_size_of_the_paper() -> None:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in base().parameters())

    assert parameters == 23_050_713  # 23.1 M at x4
