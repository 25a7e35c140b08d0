"""BSRN and its relatives: RFDN with blueprint separable convolutions (Li et al., CVPR workshops 2022).

- EagleSR (NTIRE 2025, team EagleSR): BSRN as published, 64 channels, eight blocks.
- DepthIBN (2025, team DepthIBN): IBMDN, six blocks without spatial attention; the separable convolutions have a
  bottleneck, and involutions (Li et al., CVPR 2021) take the place of some.

There is one form: nothing in them is re-parameterised.
"""

from __future__ import annotations

import functools
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import BSConv, ContrastAttention, DeepESA, in_turn, numbered, same_conv, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.rlfn.blocks import RFDB, RFDB_DISTILLATIONS, JoinedChain

COPIES = 4
"""How often the image stands in BSRN's input, side by side."""

NEGATIVE_SLOPE = 0.05

GROUP_CHANNELS = 16
"""Channels that share an involution's kernel."""


class NarrowBSConv(nn.Module):
    """Blueprint separable convolution with a bottleneck: two 1x1 without biases, then a 3x3 per channel."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int) -> None:
        super().__init__()
        self.pw1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.pw2 = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.dw = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dw(self.pw2(self.pw1(x)))
        return out


class Involution(nn.Module):
    """A 3x3 weighted sum around every pixel, the weights computed from that pixel; 16 channels share them.

    Keys: ``conv1.conv.weight``, ``conv1.bn``, ``conv2.conv.{weight,bias}``.
    """

    KERNEL = 3

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.groups = channels // GROUP_CHANNELS
        self.conv1 = nn.ModuleDict(
            {"conv": nn.Conv2d(channels, mid_channels, 1, bias=False), "bn": nn.BatchNorm2d(mid_channels)}
        )
        self.conv2 = nn.ModuleDict({"conv": nn.Conv2d(mid_channels, self.groups * self.KERNEL**2, 1)})

    def forward(self, x: Tensor) -> Tensor:
        reduced = F.relu(self.conv1["bn"](self.conv1["conv"](x)))
        kernels = grouped(self.conv2["conv"](reduced), self.groups)
        height, width = x.shape[2:]
        padded = grouped(F.pad(x, (1, 1, 1, 1)), self.groups)
        weighted = []
        for tap in range(self.KERNEL**2):
            top, left = divmod(tap, self.KERNEL)
            weighted.append(kernels[:, :, tap : tap + 1] * padded[..., top : top + height, left : left + width])
        return functools.reduce(torch.add, weighted).flatten(1, 2)


def grouped(x: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) as (N, groups, C / groups, H, W)."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width)


class ESDB(RFDB):
    """BSRN's block: blueprint convolutions, spatial and contrast attention, residual."""

    def __init__(self, channels: int, distilled: int, esa_channels: int) -> None:
        super().__init__(
            channels,
            distilled,
            conv=lambda _stage, width: BSConv(width, width),
            last=BSConv(channels, distilled),
            activation=F.gelu,
        )
        conv2 = BSConv(esa_channels, esa_channels, stride=2, padding=0)
        self.esa = DeepESA(channels, esa_channels, conv=BSConv, conv2=conv2, activation=F.gelu)
        self.cca = ContrastAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cca(self.esa(self.joined(x))) + x
        return out


class IBMDB(RFDB):
    """DepthIBN's block. involutions: the stages that have one; the others have a narrow blueprint convolution."""

    def __init__(self, channels: int, distilled: int, mid_channels: int, involutions: tuple[int, ...]) -> None:
        def conv(stage: int, width: int) -> nn.Module:
            if stage in involutions:
                return Involution(width, mid_channels)
            return NarrowBSConv(width, width, mid_channels)

        super().__init__(
            channels,
            distilled,
            conv=conv,
            last=NarrowBSConv(channels, distilled, mid_channels),
            activation=partial(F.leaky_relu, negative_slope=NEGATIVE_SLOPE),
        )
        self.cca = ContrastAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cca(self.joined(x))
        return out


class BSRN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(
        self, *, channels: int = 64, distilled: int = 32, blocks: int = 8, esa_channels: int = 16, scale: int = 4
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.fea_conv = BSConv(3 * COPIES, channels)
        for i in range(1, blocks + 1):
            self.add_module(f"B{i}", ESDB(channels, distilled, esa_channels))
        self.c1 = nn.Conv2d(blocks * channels, channels, 1)
        self.c2 = BSConv(channels, channels)
        self.upsampler = nn.ModuleDict({"upsampleOneStep": shuffle_tail(same_conv(channels, 3 * scale**2), scale)})

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.fea_conv(torch.cat([x] * COPIES, 1))
        outputs = in_turn(numbered(self, "B{}", self.blocks), shallow)
        fused = self.c2(F.gelu(self.c1(torch.cat(outputs, 1))))
        upscaled: Tensor = self.upsampler["upsampleOneStep"](fused + shallow)
        return upscaled


class IBMDN(JoinedChain):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    involutions: of each block, the stages that have one.
    """

    def __init__(
        self,
        *,
        channels: int = 48,
        distilled: int = 24,
        mid_channels: int = 12,
        involutions: tuple[tuple[int, ...], ...] = ((), (), (2,), (2,), (1, 3), (1, 3)),
        scale: int = 4,
    ) -> None:
        super().__init__(
            BSConv(3, channels),
            [IBMDB(channels, distilled, mid_channels, stages) for stages in involutions],
            nn.Sequential(nn.Conv2d(len(involutions) * channels, channels, 1), nn.LeakyReLU(NEGATIVE_SLOPE)),
            BSConv(channels, channels),
            shuffle_tail(same_conv(channels, 3 * scale**2), scale),
        )


def build(shapes: Shapes) -> Architecture:
    """A BSRN or IBMDN of the widths, depth and scale that the shapes tell."""
    distilled, channels = shapes["B1.c1_d.weight"][:2]
    blocks = count_numbered(shapes, "B{}.")
    if "upsampler.upsampleOneStep.0.weight" in shapes:
        scale = scale_of_tail(shapes["upsampler.upsampleOneStep.0.weight"][0])
        esa_channels = shapes["B1.esa.conv1.weight"][0]
        bsrn = BSRN(channels=channels, distilled=distilled, blocks=blocks, esa_channels=esa_channels, scale=scale)
        return Architecture(bsrn, scale, "deploy")
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    stages = range(1, RFDB_DISTILLATIONS + 1)
    involutions = [
        tuple(stage for stage in stages if f"B{i}.c{stage}_r.conv1.conv.weight" in shapes) for i in range(1, blocks + 1)
    ]
    mid_channels = shapes["B1.c4.pw1.weight"][0]
    ibmdn = IBMDN(
        channels=channels,
        distilled=distilled,
        mid_channels=mid_channels,
        involutions=tuple(involutions),
        scale=scale,
    )
    return Architecture(ibmdn, scale, "deploy")


def reference() -> BSRN:
    """EagleSR's, 2025."""
    return BSRN()


def depth_ibn() -> IBMDN:
    """DepthIBN's, 2025."""
    return IBMDN()
