"""SPANV2: NTIRE 2026 efficient SR, team XiaomiMM (report, section 4.1): first in runtime and overall.

SPANF with ReLU, an attention map that a 1x1 convolution learns, and a depthwise-separable tail. The entrants run
the attention as one CUDA kernel; here it is the plain operators of the report's equations (6) and (7).

There is one form: the convolutions are trained as they are deployed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail


class PlainConv(nn.Module):
    """A 3x3 convolution under ``conv``."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class SPABV2(nn.Module):
    """Three convolutions with ReLU between them; ``(x + f) * conv1x1(f)`` where the channels stay the same."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.attends = in_channels == out_channels
        self.c1 = PlainConv(in_channels, out_channels, bias=bias)
        self.c2 = PlainConv(out_channels, out_channels, bias=bias)
        self.c3 = PlainConv(out_channels, out_channels, bias=bias)
        if self.attends:
            self.guidance_map_conv = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.c3(F.relu(self.c2(F.relu(self.c1(x)))))
        if not self.attends:
            return F.relu(features)
        attended: Tensor = (x + features) * self.guidance_map_conv(features)
        return attended


class SPANV2(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    bias: whether the convolutions have one (the entry's have none, the attention's always do).
    """

    def __init__(self, *, channels: int = 32, blocks: int = 5, scale: int = 4, bias: bool = False) -> None:
        super().__init__()
        subpixels = 3 * scale**2
        self.blocks = blocks
        for i in range(blocks):
            self.add_module(f"block_{i + 1}", SPABV2(channels if i else 3, channels, bias=bias))
        self.conv_near = nn.Conv2d(3, subpixels, 3, padding=1, groups=3, bias=False)
        joined = subpixels + channels
        self.depthwise_conv = nn.Conv2d(joined, joined, 3, padding=1, groups=joined, bias=bias)
        self.pointwise_conv = nn.Conv2d(joined, subpixels, 1, bias=bias)
        self.depth_to_space = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.blocks + 1):
            out = self.get_submodule(f"block_{i}")(out)
        joined = self.depthwise_conv(torch.cat([self.conv_near(x), out], 1))
        upscaled: Tensor = self.depth_to_space(self.pointwise_conv(joined))
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A SPANV2 of the widths, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["conv_near.weight"][0])
    module = SPANV2(
        channels=shapes["block_1.c1.conv.weight"][0],
        blocks=count_numbered(shapes, "block_{}."),
        scale=scale,
        bias="block_1.c1.conv.bias" in shapes,
    )
    return Architecture(module, scale, "deploy")


def reference() -> SPANV2:
    """XiaomiMM's, 2026."""
    return SPANV2()
