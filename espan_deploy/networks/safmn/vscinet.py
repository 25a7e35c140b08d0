"""VSCINet: NTIRE 2026 efficient SR, team XuptSR ("Variance-Guided Spatial-Channel Context Interaction Network").

DAN's block with depthwise kernels of four shapes in place of its depthwise 3x3, and a learnt mix of the pooled image
and the variance. Its channel attention sees local windows of 72 pixels too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import numbered
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.safmn.blocks import JoinedBlocks, SpatialModulation, row_kernels
from espan_deploy.networks.safmn.local_attention import ChannelAttention


class InceptionDWG(nn.Module):
    """A quarter of the channels each through a depthwise 3x3, 5x3, 3x5 and two 3x3 in a chain."""

    PARTS = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        for i, kernel in enumerate(row_kernels(channels // self.PARTS, self.PARTS, bias=False), 1):
            self.add_module(f"conv2_{i}", kernel)

    def forward(self, x: Tensor) -> Tensor:
        kernels = numbered(self, "conv2_{}", self.PARTS)
        return torch.cat([kernel(part) for kernel, part in zip(kernels, x.chunk(self.PARTS, 1), strict=True)], 1)


class MultiScale(nn.Module):
    """A 1x1 and the four depthwise shapes.

    residual: whether the input is added, and GELU follows.
    """

    def __init__(self, channels: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.dwc = InceptionDWG(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dwc(self.conv1(x))
        return F.gelu(out + x) if self.residual else out


class Block(nn.Module):
    """Distillation of three steps, then spatial modulation and channel attention, and one residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.c1_d = nn.Conv2d(channels, half, 1)
        self.c1_r = MultiScale(channels, residual=True)
        self.c2_d = nn.Conv2d(channels, half, 1)
        self.c2_r = MultiScale(channels, residual=True)
        self.c3 = nn.Conv2d(channels, half, 3, padding=1, groups=half)
        self.c4 = nn.Conv2d(3 * half, channels, 1)
        self.local_handle = MultiScale(channels, residual=True)
        self.spatial_attn = SpatialModulation(channels, learnt_mix=True)
        self.channel_attn = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        first = self.c1_r(x)
        second = self.c2_r(first)
        kept = [F.gelu(conv(features)) for conv, features in ((self.c1_d, x), (self.c2_d, first), (self.c3, second))]
        out = self.local_handle(self.c4(torch.cat(kept, 1)))
        attended: Tensor = self.channel_attn(self.spatial_attn(out)) + x
        return attended


class VSCINet(JoinedBlocks):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 8. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 20, blocks: int = 5, scale: int = 4) -> None:
        fuse_end = MultiScale(channels, residual=False)
        super().__init__(Block, fuse_end, channels=channels, blocks=blocks, scale=scale)


def build(shapes: Shapes) -> Architecture:
    """A VSCINet of the width, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["to_img.0.weight"][0])
    module = VSCINet(channels=shapes["to_feat.weight"][0], blocks=count_numbered(shapes, "B{}."), scale=scale)
    return Architecture(module, scale, "deploy")


def reference() -> VSCINet:
    """XuptSR's, 2026."""
    return VSCINet()
