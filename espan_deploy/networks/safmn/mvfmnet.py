"""MVFMNet: NTIRE 2025 efficient SR, team MILA ("Multi-Level Variance Feature Modulation Network").

Two maps of features are modulated by a coarse grid each, of H // 7 and of H // 5: by the largest value of each cell of
it and by the variance in windows around it. The same layer normalisation stands before both parts of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.grids import adaptive_max_pool, resize_nearest
from espan_deploy.networks.safmn.blocks import ChannelNorm, Stretches, depthwise, upsampler, variance_in_windows

EPSILON = 1e-5
DIVISORS = (7, 5)
"""The coarse grids are the image's size over these."""


class VarianceModulation(nn.Module):
    """Features times what a coarse grid of their maxima and variances makes, each weighed by a factor per channel."""

    def __init__(self, channels: int, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.conv = nn.Conv2d(channels, channels, 1)
        self.dw_conv = depthwise(channels, 3)
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.belt = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        pooled = self.dw_conv(adaptive_max_pool(x, self.divisor))
        variance = variance_in_windows(x, *(even_stretches(x, axis, self.divisor) for axis in (2, 3)))
        factor = F.gelu(self.conv(pooled * self.alpha + variance * self.belt))
        return x * resize_nearest(factor, height, width)


class Modulation(nn.Module):
    """Features from depthwise convolutions, plus two maps modulated by grids of different sizes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 3 * channels, 1)
        self.sa1 = VarianceModulation(channels, DIVISORS[0])
        self.sa2 = VarianceModulation(channels, DIVISORS[1])
        self.linear = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), depthwise(2 * channels, 3), nn.GELU()
        )
        self.project_out = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, plain, second = self.project_in(x).chunk(3, 1)
        modulated = torch.cat([self.sa1(first), self.sa2(second)], 1)
        out: Tensor = self.project_out(self.linear(plain) + modulated)
        return out


class SGFN(nn.Module):
    """A feed-forward in four parts: the second gates the first, the third the fourth. No biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.dwconv = depthwise(4 * channels, 3, bias=False)
        self.project_out = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, gate_a, gate_b, b = self.dwconv(self.project_in(x)).chunk(4, 1)
        out: Tensor = self.project_out(torch.cat([F.gelu(gate_a) * a, F.gelu(gate_b) * b], 1))
        return out


class Block(nn.Module):
    """Modulation and feed-forward, each behind the same normalisation and with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mvfmb = Modulation(channels)
        self.sgfn = SGFN(channels)
        self.pixel_norm = ChannelNorm(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mvfmb(self.pixel_norm(x)) + x
        out: Tensor = self.sgfn(self.pixel_norm(x)) + x
        return out


class MVFMNet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 7. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 26, blocks: int = 6, scale: int = 4) -> None:
        super().__init__()
        self.to_feat = nn.Conv2d(3, channels, 3, padding=1)
        self.feats = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.to_img = upsampler(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.to_feat(x)
        upscaled: Tensor = self.to_img(self.feats(shallow) + shallow)
        return upscaled


def even_stretches(x: Tensor, axis: int, divisor: int) -> Stretches:
    """size // divisor stretches of an axis, evenly spaced by whole pixels, as long as it takes to reach the end."""
    size = x.shape[axis]
    count = size // divisor
    step = size // count
    return torch.arange(count, device=x.device) * step, size - (count - 1) * step


def build(shapes: Shapes) -> Architecture:
    """An MVFMNet of the width, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["to_img.0.weight"][0])
    module = MVFMNet(
        channels=shapes["to_feat.weight"][0], blocks=count_numbered(shapes, "feats.{}.", first=0), scale=scale
    )
    return Architecture(module, scale, "deploy")


def reference() -> MVFMNet:
    """MILA's, 2025."""
    return MVFMNet()
