"""SGSDN: NTIRE 2025 efficient SR, team YG.

Blocks of three gated attentions, each of features normalised to length one: a large separable kernel (35 pixels) and a
3x3 each multiply the same half of the features, and each makes half of the output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.safmn.blocks import depthwise, normalise, upsampler


class SDC(nn.Module):
    """Gated by a large kernel and by a small one, side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_0 = depthwise(channels, 3)
        self.conv_1 = nn.Conv2d(channels, channels // 2, 1)
        self.pw1 = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.pw2 = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.LKA35 = nn.Sequential(
            depthwise(channels, (1, 5)),
            depthwise(channels, (1, 11), dilation=3),
            depthwise(channels, (5, 1)),
            depthwise(channels, (11, 1), dilation=3),
        )

    def forward(self, x: Tensor) -> Tensor:
        features, gate = F.gelu(self.pw1(x)).chunk(2, 1)
        near, far = self.conv_1(self.conv_0(features) * gate), self.pw2(self.LKA35(features) * gate)
        return torch.cat([F.gelu(near), far], 1)


class VSD(nn.Module):
    """Each channel convolved to two, GELU, a 1x1 back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels)
        self.conv_1 = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_1(F.gelu(self.conv_0(x)))
        return out


class Block(nn.Module):
    """Three attentions in a chain, then a feed-forward, a residual around each of the two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.VA1 = SDC(channels)
        self.VA2 = SDC(channels)
        self.VA3 = SDC(channels)
        self.VSD = VSD(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for attention in (self.VA1, self.VA2, self.VA3):
            out = attention(normalise(out))
        out = out + x
        spread: Tensor = self.VSD(out) + out
        return spread


class SGSDN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 24, blocks: int = 8, scale: int = 4) -> None:
        super().__init__()
        self.fea_conv = nn.Conv2d(3, channels, 3, padding=1)
        self.feats = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.upsampler = upsampler(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.fea_conv(x)
        upscaled: Tensor = self.upsampler(self.feats(shallow) + shallow)
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """An SGSDN of the width, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = SGSDN(
        channels=shapes["fea_conv.weight"][0], blocks=count_numbered(shapes, "feats.{}.", first=0), scale=scale
    )
    return Architecture(module, scale, "deploy")


def reference() -> SGSDN:
    """YG's, 2025."""
    return SGSDN()
