"""Every released checkpoint against what the entrants' own code makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from espan_deploy.checkpoints import Checkpoint, load_checkpoint
from espan_deploy.networks import NETWORKS, Network, load_network
from espan_deploy.networks.folded import deploy_state
from espan_deploy.networks.scans import mambairv2

GOLDEN_TOLERANCE = 1e-4
"""Of the value range: another machine's kernels sum in another order. A wrong network is off by far more."""

ROUTED_TOLERANCE = 5e-4
"""Of the value range, root mean square, where pixels choose a prompt. Of two that score alike to rounding, another
machine chooses another, and all that is scanned after such a pixel moves: by up to 3e-4 under noise of 3e-7 on the
input. Another order of equal ones moves it by 6e-4 and 2e-3, a wrong network by far more."""

FLOPS_TOLERANCE = 3e-3
"""Relative: the reports also count resizing and some biases, which attention blocks have, and round to two decimals."""


@dataclass(frozen=True)
class Released:
    """A checkpoint's network, parameters and convolutions executed, as the entrants' own code counts them, folded.

    FSANet alone has fewer convolutions here: its factors by segment are none.

    also_counted: operations, in units of 1e9, that the report counts (fvcore's conventions) besides convolutions.
    reported_parameters: where the report counts the training form's as well.
    settings: what the shapes do not tell.
    multiply_adds_g: what our module costs, in giga, matrix products included, where the report's figure is explained
    in another way: it counts five operations for each value that is normalised, and what a comment says. convs is None.
    deployed_tolerance: of the output, of the value range, as it is deployed. Two networks sort pixels by one of 64
    prompts; the entrants leave to PyTorch in which order equal ones come, ours keeps the image's order.
    """

    file: str
    network: str
    parameters: int
    convs: int | None
    also_counted: float = 0.0
    reported_parameters: int | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    multiply_adds_g: float | None = None
    deployed_tolerance: float = GOLDEN_TOLERANCE


def resized(channels: int, pixels: int = 256 * 256) -> float:
    """fvcore counts four operations for each value that is resized bilinearly."""
    return 4 * channels * pixels / 1e9


def pooled(channels: int, pixels: int = 256 * 256) -> float:
    """And one for each value that is averaged by a pooling layer."""
    return channels * pixels / 1e9


SOBEL = 2 * 64 * 9 * 256 * 256 / 1e9
"""FEAN's fixed filters, which are no layers: one for each channel and direction."""

MIXTURE = 6 * (2 + 4) * 96 * 256 * 129 / 1e9
"""SFNet's six batch norms, and what mixes its four experts, over half a spectrum."""


def resized_nearest(channels: int, pixels: int = 256 * 256) -> float:
    """And one for each value that is repeated."""
    return channels * pixels / 1e9


def normalised(channels: int) -> float:
    """And five for each value that a layer of normalisation makes."""
    return 5 * channels * 256 * 256 / 1e9


def attended(channels: int, heads: int = 1) -> float:
    """Channel attention in local windows of 72 or 96 pixels, which overlap to 288x288: two matrix products."""
    return 2 * channels * channels / heads * 288 * 288 / 1e9


SAME_PADDED = {
    "fmdn": -(12 * 342 + 3 * 528 + 8 * 960) * 256 * 256 / 1e9,
    "vscinet": -16 * 285 * 256 * 256 / 1e9,
}
"""Depthwise convolutions whose padding is the word "same": the reports' counter does not know them."""

FMDN_UNEXPLAINED = 0.037
"""One hundredth of FMDN's published figure, in no operation that we found. Its parameters and its output agree."""

EXPERTS_LEFT_OUT = -(9 * 14 - 26) * 3 * 36 * 256 * 256 / 1e9
"""MoASR runs all its experts here, and one of three in the report: which, depends on the image. Of the 126 channels of
all it may be 18 to 72; 26 is what the report's figure says."""

ENLARGED = resized(3, 1024 * 1024)

SPECTRA = 8 * (5 * 56 * 256 * 256 + 2 * 28 * 260 * 130) / 1e9
"""FSANet's eight layer norms, five operations a value, and its factors by segment, a convolution in the original."""

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
    Released("2025/team25_RepRLFN.pth", "rep-rlfn", 325_020, 39, also_counted=4 * resized(15)),
    Released("2025/team30_ARRLFN.pth", "arrlfn", 71_964, 54, also_counted=3 * (resized(32) + resized(32, 512 * 512))),
    Released("2025/team33_EagleSR.pth", "eaglesr", 352_400, 206, also_counted=8 * (resized(16) + pooled(64))),
    Released("2025/team37_RCUNet.pth", "rcunet", 212_944, 43, also_counted=4 * resized(16)),
    Released("2025/team41_DepthIBN.pth", "depth-ibn", 121_116, 108, also_counted=6 * pooled(48)),
    Released("2025/team42_FEAN.pt", "fean", 210_224, 44, also_counted=2 * resized(32) + SOBEL),
    Released("2025/team43_SepSRNet.pth", "sepsrnet", 251_091, 129, also_counted=9 * (resized(12) + pooled(48))),
    Released("2025/team44_SPAN_random.pth", "span", 426_288, 22, settings={"img_range": 1.0}),
    Released("2025/team45_TDESR.pth", "tdesr", 251_696, 33),
    Released("2025/team47_EECNet.pth", "eecnet", 209_744, 51, also_counted=8 * resized(16)),
    Released("2025/GLoReNet_m8c48_26_9205.pt", "glorenet", 303_104, 29, also_counted=2 * resized(16)),
    Released("2025/team50_TenInOneSR_random.pth", "teninonesr", 341_840, 28, also_counted=4 * resized(48)),
    Released("2025/team52_ECAS.pth", "ecas", 301_413, 22, also_counted=pooled(160)),
    Released("2025/team56_PAEDN.pth", "paedn", 240_336, 33),
    Released("2025/team17_FSANet.pth", "fsanet", 308_776, 142, also_counted=SPECTRA),
    Released("2025/team35_SFNet_random.pth", "sfnet", 497_160, 58, also_counted=MIXTURE, reported_parameters=2_307_600),
    Released(
        "2025/team54_HITSR.pth", "hit-srf", 866_420, None, multiply_adds_g=61.985
    ),  # sums in a cheaper order than 65.66 - 0.98
    Released("2025/team28_bvi_srfnet_g.pth", "bvi-srf", 154_839, None, multiply_adds_g=10.604),
    Released("2026/team19_BVIESR.pth", "bvi-srf", 154_839, None, multiply_adds_g=10.604),
    Released("2025/team22_ParticalSRFormer3_random.pth", "partial-srformer", 966_336, None, multiply_adds_g=69.948),
    Released(
        "2025/team16_SCMSR.pth", "scmsr", 392_980, None, multiply_adds_g=19.056
    ),  # no window left out, where 17.62 leaves half
    Released("2025/team34_PFVM.pth", "pfvm", 427_848, None, multiply_adds_g=25.524),
    Released(
        "2025/team40_mambairv2light.pth", "mambairv2", 789_680, None, multiply_adds_g=73.502, deployed_tolerance=0.06
    ),
    Released("2026/team12_DWMamba.pth", "dwmamba", 673_640, None, multiply_adds_g=19.049, deployed_tolerance=0.02),
    Released("2026/team05_SPANMamba_single_1_4T05_random.pth", "spanmamba", 573_168, None, multiply_adds_g=36.701),
    Released("2026/team06_HAESR.pth", "haesr", 352_869, None, multiply_adds_g=25.904),
    Released("2025/team19_safmnv3.pth", "safmnv3", 144_672, 44, also_counted=6 * resized(12) + ENLARGED),
    Released("2025/team08_FRnet.pth", "frnet", 211_572, 32, also_counted=6 * resized(12) + ENLARGED),
    Released("2025/team39_ExpandRepNet.pth", "expand-rep-net", 212_628, 32, also_counted=6 * resized(12) + ENLARGED),
    Released(
        "2026/team21_SAFMN_Deep15.pth",
        "safmn",
        149_248,
        107,
        also_counted=15 * (2 * normalised(40) + resized_nearest(30)) + ENLARGED,
    ),
    Released("2025/team20_DAN.pth", "dan", 44_354, 144, also_counted=6 * (attended(16) + resized_nearest(8))),
    Released("2026/team04_ZenoSR.pth", "zenosr", 37_786, 102, also_counted=4 * (attended(18) + resized_nearest(9))),
    Released(
        "2026/team11_VSCINet.pth",
        "vscinet",
        51_465,
        169,
        also_counted=5 * (attended(20) + resized_nearest(10)) + SAME_PADDED["vscinet"],
    ),
    Released(
        "2025/team27_MVFMNet.pth",
        "mvfmnet",
        86_888,
        68,
        also_counted=6 * (2 * normalised(26) + resized_nearest(52)),
    ),
    Released(
        "2025/team10_MoASR.pth",
        "moasr",
        180_264,
        201,
        also_counted=9 * (2 * pooled(36) + resized_nearest(36)) + EXPERTS_LEFT_OUT,
    ),
    Released("2025/team29_MAANRep.pth", "maan", 168_576, 138),
    Released("2025/team18_SGSDN.pth", "sgsdn", 92_592, 210),
    Released("2026/team17_AMCANet.pth", "amcanet", 86_384, 136, also_counted=7 * resized(16)),
    Released("2026/team10_HFENet.pth", "hfenet", 143_628, 157),
    Released(
        "2025/team26_FMDN.pth",
        "fmdn",
        71_525,
        250,
        also_counted=8 * resized(6) + 3 * resized_nearest(24) + pooled(24) + SAME_PADDED["fmdn"] + FMDN_UNEXPLAINED,
    ),
    Released(
        "2025/team13_HannahSR.pth",
        "hannahsr",
        59_600,
        168,
        also_counted=4 * (attended(24, heads=3) + 2 * resized(6) + pooled(24)),
    ),
)

GENERAL = {"span", "spanf"}
"""Entries whose special cases have entries of their own before them."""

pytestmark = [pytest.mark.shared, pytest.mark.parametrize("released", RELEASED, ids=lambda r: r.file)]


def entrants_order(numbers: torch.Tensor) -> torch.Tensor:
    """How the entrants sort prompts: where numbers are equal, PyTorch's introsort decides."""
    return torch.sort(numbers, dim=-1, stable=False).indices


stable_order = mambairv2.stable_order


def network_of(released: Released, shared: Path) -> Network:
    return load_network(load_checkpoint(shared / "checkpoints" / released.file), **released.settings)


def deployed(network: Network) -> nn.Module:
    """The network in deploy form."""
    if network.form == "deploy":
        return network.module
    return load_network(Checkpoint(Path("folded.pth"), "", deploy_state(network))).module


def run(network: Network, low: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        upscaled: NDArray[np.float32] = network.module(torch.from_numpy(low)).numpy()
    return upscaled


def test_output_equals_the_entrants_own(released: Released, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(released, shared)
    with np.load(shared / "golden" / f"{released.file.replace('/', '_').rsplit('.', 1)[0]}.npz") as golden:
        low, expected = golden["lr"], golden["sr"]

    monkeypatch.setattr(mambairv2, "stable_order", entrants_order)
    upscaled = run(network, low)
    assert upscaled.shape == expected.shape
    off = np.abs(upscaled - expected) / network.value_range
    if released.deployed_tolerance == GOLDEN_TOLERANCE:
        assert off.max() <= GOLDEN_TOLERANCE
        return
    assert off.max() <= released.deployed_tolerance
    assert np.sqrt(np.mean(off**2)) <= ROUTED_TOLERANCE

    monkeypatch.setattr(mambairv2, "stable_order", stable_order)
    assert np.abs(run(network, low) - expected).max() <= released.deployed_tolerance * network.value_range


def test_is_detected_as_its_own_network_and_no_other(released: Released, shared: Path) -> None:
    shapes = load_checkpoint(shared / "checkpoints" / released.file).shapes

    own, *others = [entry.name for entry in NETWORKS if entry.detect(shapes)]

    assert own == released.network
    assert set(others) <= GENERAL


def test_counts_are_those_published(released: Released, shared: Path) -> None:
    network = network_of(released, shared)
    assert network.entry is not None
    module = deployed(network)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert parameters == released.parameters
    if released.multiply_adds_g is not None:
        assert multiply_adds_at(module, 256) / 1e9 == pytest.approx(released.multiply_adds_g, abs=1e-3)
        return
    convs, multiply_adds = convolutions_at(module, 256)

    assert convs == released.convs
    nearest = min(network.entry.published, key=lambda row: abs(row.flops_g - multiply_adds / 1e9))
    assert round((released.reported_parameters or parameters) / 1e6, 3) == nearest.params_m
    assert multiply_adds / 1e9 + released.also_counted == pytest.approx(nearest.flops_g, rel=FLOPS_TOLERANCE)


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


def multiply_adds_at(module: nn.Module, size: int) -> float:
    """Of every convolution and matrix product on one size x size image, from shapes alone."""
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2
