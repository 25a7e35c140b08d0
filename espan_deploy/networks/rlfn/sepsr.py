"""SepSRNet: NTIRE 2025 efficient SR, team SVM.

Residual blocks of separable convolutions (3x1, then 1x3), whose output a spatial and a contrast attention share; the
image itself is added, through a learnt 1x1, before the pixel shuffle. There is one form: nothing is re-parameterised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import ContrastAttention, DeepESA, same_conv, separable_conv
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail

FIRST_BLOCK = 2
"""Its place in ``cnn``, behind the head and its clipping."""


class Block(nn.Module):
    """Two separable convolutions with ReLU between them, two attentions side by side, a 1x1, residual."""

    def __init__(self, channels: int, mid_channels: int, esa_channels: int, reduction: int) -> None:
        super().__init__()
        self.c1_r = separable_conv(channels, mid_channels, bias=False)
        self.c2_r = separable_conv(channels, mid_channels, bias=False)
        self.esa = DeepESA(channels, esa_channels)
        self.cca = ContrastAttention(channels, reduction)
        self.conv_merge = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.c2_r(F.relu(self.c1_r(x)))
        merged: Tensor = self.conv_merge(torch.cat([self.esa(out), self.cca(out)], 1))
        return x + merged


class SepSRNet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), clipped to [0, 1]."""

    def __init__(
        self,
        *,
        channels: int = 48,
        mid_channels: int = 24,
        esa_channels: int = 12,
        reduction: int = 16,
        blocks: int = 9,
        scale: int = 4,
    ) -> None:
        super().__init__()
        body = (Block(channels, mid_channels, esa_channels, reduction) for _ in range(blocks))
        self.cnn = nn.Sequential(same_conv(3, channels), nn.Hardtanh(0, 1), *body)
        self.conv_last = same_conv(channels, 3 * scale**2)
        self.anchor = nn.ModuleDict({"net": nn.Conv2d(3, 3 * scale**2, 1)})
        self.depth_to_space = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_last(self.cnn(x)) + self.anchor["net"](x)
        upscaled: Tensor = self.depth_to_space(out.clamp(0, 1))
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A SepSRNet of the widths, depth and scale that the shapes tell."""
    first = f"cnn.{FIRST_BLOCK}"
    scale = scale_of_tail(shapes["conv_last.weight"][0])
    channels = shapes["cnn.0.weight"][0]
    module = SepSRNet(
        channels=channels,
        mid_channels=shapes[f"{first}.c1_r.0.weight"][0],
        esa_channels=shapes[f"{first}.esa.conv1.weight"][0],
        reduction=channels // shapes[f"{first}.cca.conv_du.0.weight"][0],
        blocks=count_numbered(shapes, "cnn.{}.", first=FIRST_BLOCK),
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> SepSRNet:
    """SVM's, 2025."""
    return SepSRNet()
