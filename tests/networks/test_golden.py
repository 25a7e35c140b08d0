"""Every released checkpoint of the first wave against what the entrants' own code makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from espan_deploy.checkpoints import load_checkpoint
from espan_deploy.networks import NETWORKS, Network, load_network

GOLDEN_TOLERANCE = 1e-4
"""Of the value range: another machine's kernels sum in another order. A wrong network is off by far more."""

FLOPS_TOLERANCE = 3e-3
"""Relative: the reports also count resizing and some biases, which attention blocks have, and round to two decimals."""


@dataclass(frozen=True)
class Released:
    """A checkpoint's network, parameters and convolutions executed, as the entrants' own code counts them."""

    file: str
    network: str
    parameters: int
    convs: int


RELEASED = (
    Released("2025/team00_EFDN.pth", "efdn", 276_192, 65),
    Released("2025/team36_espan.pth", "espan", 192_272, 21),
    Released("2025/team24_spanf.pth", "spanf", 148_288, 18),
    Released("2025/team23_DSCF.pth", "dscf", 130_828, 22),
    Released("2025/team31_TSR.pth", "tsr", 171_984, 19),
    Released("2025/team58_TSSR.pth", "tssr", 163_792, 19),
    Released("2025/team46_span.pth", "span-pruned", 146_328, 22),
    Released("2025/team51_span.pth", "span-pruned", 146_328, 22),
    Released("2025/team38_ESRNet.pth", "esrnet", 157_772, 23),
    Released("2025/team21_IESRNet.pt", "iesrnet", 143_008, 33),
    Released("2025/team15_DIPNet_slim_v2.pt", "dipnet-slim", 154_336, 39),
    Released("2025/team07_NanoSR.pth", "nanosr", 550_992, 28),
    Released("2026/team00_SPAN.pth", "span", 150_688, 22),
    Released("2026/team01_PDS.pth", "pds", 141_748, 18),
    Released("2026/team16_PKDSR.pth", "pkdsr", 143_928, 18),
    Released("2026/team18_DISP.pth", "tssr", 163_792, 19),
    Released("2026/team15_DSCF_Fused.pth", "dscf-fused", 125_992, 22),
    Released("2026/team20_ERRN2.pth", "errn2", 245_968, 27),
    Released("2026/team22_spanv2_c2.pth", "spanv2", 139_104, 22),
    Released("2026/team09_RFDN_SPAN.pth", "rfdn-span", 346_152, 36),
)

GENERAL = {"span", "spanf"}
"""Entries whose special cases have entries of their own before them."""

pytestmark = [pytest.mark.shared, pytest.mark.parametrize("released", RELEASED, ids=lambda r: r.file)]


def network_of(released: Released, shared: Path) -> Network:
    return load_network(load_checkpoint(shared / "checkpoints" / released.file))


def test_output_equals_the_entrants_own(released: Released, shared: Path) -> None:
    network = network_of(released, shared)
    golden = np.load(shared / "golden" / f"{released.file.replace('/', '_').rsplit('.', 1)[0]}.npz")

    with torch.inference_mode():
        upscaled = network.module(torch.from_numpy(golden["lr"])).numpy()

    assert upscaled.shape == golden["sr"].shape
    assert np.abs(upscaled - golden["sr"]).max() <= GOLDEN_TOLERANCE * network.value_range


def test_is_detected_as_its_own_network_and_no_other(released: Released, shared: Path) -> None:
    shapes = load_checkpoint(shared / "checkpoints" / released.file).shapes

    own, *others = [entry.name for entry in NETWORKS if entry.detect(shapes)]

    assert own == released.network
    assert set(others) <= GENERAL


def test_counts_are_those_published(released: Released, shared: Path) -> None:
    network = network_of(released, shared)
    assert network.entry is not None
    convs, multiply_adds = convolutions_at(network.module, 256)
    parameters = sum(parameter.numel() for parameter in network.module.parameters())

    assert (parameters, convs) == (released.parameters, released.convs)
    nearest = min(network.entry.published, key=lambda row: abs(row.params_m - parameters / 1e6))
    assert round(parameters / 1e6, 3) == nearest.params_m
    assert multiply_adds / 1e9 == pytest.approx(nearest.flops_g, rel=FLOPS_TOLERANCE)


def convolutions_at(module: nn.Module, size: int) -> tuple[int, int]:
    """(convolutions executed, their multiply-adds) on one size x size image, from shapes alone."""
    executed: list[int] = []

    def count(conv: nn.Module, _: object, out: torch.Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        executed.append(out.numel() * conv.weight[0].numel())

    module = module.to("meta")
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    module(torch.empty(1, 3, size, size, device="meta"))
    return len(executed), sum(executed)
