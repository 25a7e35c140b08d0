"""AMCANet: NTIRE 2026 efficient SR, team XSR.

Each head makes an attention map by depthwise convolutions: the first of the features as they are, the others of ever
more strongly pooled ones, resized to the whole image. Features are normalised to length one before each part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.safmn.blocks import depthwise, normalise

LARGEST_STRIDE = 16


class Head(nn.Module):
    """An attention map times values. stride: of the pooling, 0 for none; its window is 2 * stride - 1 pixels."""

    def __init__(self, channels: int, own_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1x1 = nn.Conv2d(channels, 2 * own_channels, 1)
        self.conv3x3_1 = depthwise(own_channels, 3)
        self.conv3x3_2 = depthwise(own_channels, 3)
        self.conv3x3_3 = depthwise(own_channels, 3)
        self.conv3x3_v = depthwise(own_channels, 3)
        self.conv1x1_2 = nn.Conv2d(own_channels, own_channels, 1)
        self.conv1x1_3 = nn.Conv2d(own_channels, own_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features, values = self.conv1x1(x).chunk(2, 1)
        full_size = self.conv3x3_1(features)
        coarse = F.max_pool2d(full_size, 2 * self.stride - 1, stride=self.stride) if self.stride else full_size
        coarse = self.conv1x1_2(self.conv3x3_3(self.conv3x3_2(coarse)))
        if self.stride:
            coarse = F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=False)
        out: Tensor = torch.sigmoid(self.conv1x1_3(coarse + full_size)) * self.conv3x3_v(values)
        return out


class AMCA(nn.Module):
    """The heads side by side, joined by a 1x1."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        own = channels // heads
        self.heads = nn.ModuleList(Head(channels, own, stride_of(i)) for i in range(heads))
        self.fusion_conv = nn.Conv2d(own * heads, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fusion_conv(torch.cat([head(x) for head in self.heads], 1))
        return out


class FSG(nn.Module):
    """A feed-forward where half of the features, through a sigmoid, gate the other half."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        half = hidden // 2
        self.conv1x1_1 = nn.Conv2d(channels, hidden, 1)
        self.conv3x3_2 = depthwise(half, 3)
        self.conv1x1_2 = nn.Conv2d(half, half, 1)
        self.conv1x1_3 = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, features = self.conv1x1_1(x).chunk(2, 1)
        out: Tensor = self.conv1x1_3(torch.sigmoid(self.conv1x1_2(self.conv3x3_2(gate))) * features)
        return out


class Block(nn.Module):
    """Attention and feed-forward, each with a residual."""

    def __init__(self, channels: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.amca = AMCA(channels, heads)
        self.fsg = FSG(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.amca(normalise(x)) + x
        out: Tensor = self.fsg(normalise(x)) + x
        return out


class AMCANet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least the largest pooling window. Returns
    (N, 3, scale * H, scale * W), not clipped."""

    def __init__(
        self, *, channels: int = 32, hidden: int = 64, blocks: int = 7, heads: int = 2, scale: int = 4
    ) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(channels, hidden, heads) for _ in range(blocks)))
        self.conv1x1 = nn.Conv2d(channels, channels, 1)
        self.tail = nn.Conv2d(channels, 3 * scale**2, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        upscaled: Tensor = self.pixel_shuffle(self.tail(self.conv1x1(self.blocks(shallow)) + shallow))
        return upscaled


def stride_of(head: int) -> int:
    """How much the head of this number pools: 0, 4, 8, 12, 16, 16..."""
    return min(4 * head, LARGEST_STRIDE)


def build(shapes: Shapes) -> Architecture:
    """An AMCANet of the widths, depth, heads and scale that the shapes tell."""
    scale = scale_of_tail(shapes["tail.weight"][0])
    heads = count_numbered(shapes, "blocks.0.amca.heads.{}.", first=0)
    module = AMCANet(
        channels=shapes["head.weight"][0],
        hidden=shapes["blocks.0.fsg.conv1x1_1.weight"][0],
        blocks=count_numbered(shapes, "blocks.{}.", first=0),
        heads=heads,
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> AMCANet:
    """XSR's, 2026."""
    return AMCANet()
