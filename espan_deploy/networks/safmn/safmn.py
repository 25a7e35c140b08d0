"""SAFMN with fifteen blocks: NTIRE 2026 efficient SR, team MDAP (SAFMN_Deep15).

Sun et al., "Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution", ICCV 2023. A quarter of the
channels each is seen at full, half, a quarter and an eighth of the size, convolved there, enlarged, and joined to what
all channels are multiplied by. Group normalisation with one group: over channels and image at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.grids import adaptive_max_pool, resize_nearest
from espan_deploy.networks.safmn.blocks import depthwise, upsampler

EPSILON = 1e-5
"""PyTorch's default of group normalisation."""


class ImageNorm(nn.Module):
    """Group normalisation with one group, its weight and bias under ``norm``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


class Modulation(nn.Module):
    """Level i of the channels is pooled to H // 2**i by W // 2**i, convolved by itself and enlarged."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.mfr = nn.ModuleList(depthwise(channels // levels, 3) for _ in range(levels))
        self.aggr = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        full_size, *others = x.chunk(len(self.mfr), 1)
        seen = [self.mfr[0](full_size)]
        for level, features in enumerate(others, 1):
            coarse = self.mfr[level](adaptive_max_pool(features, 2**level))
            seen.append(resize_nearest(coarse, *x.shape[2:]))
        return F.gelu(self.aggr(torch.cat(seen, 1))) * x


class Block(nn.Module):
    """Modulation and a feed-forward, each normalised before and with a residual."""

    def __init__(self, channels: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.norm1 = ImageNorm(channels)
        self.safm = Modulation(channels, levels)
        self.norm2 = ImageNorm(channels)
        self.ffn = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.safm(self.norm1(x)) + x
        out: Tensor = self.ffn(self.norm2(x)) + x
        return out


class SAFMN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 2**(levels - 1). Returns (N, 3, scale * H, scale * W), not
    clipped."""

    def __init__(
        self, *, channels: int = 40, hidden: int = 80, blocks: int = 15, levels: int = 4, scale: int = 4
    ) -> None:
        super().__init__()
        self.scale = scale
        self.to_feat = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(channels, hidden, levels) for _ in range(blocks)))
        self.upsampler = upsampler(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        enlarged = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        shallow = self.to_feat(x)
        upscaled: Tensor = self.upsampler(self.blocks(shallow) + shallow) + enlarged
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A SAFMN of the widths, depth, levels and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    levels = count_numbered(shapes, "blocks.0.safm.mfr.{}.", first=0)
    module = SAFMN(
        channels=shapes["to_feat.weight"][0],
        hidden=shapes["blocks.0.ffn.0.weight"][0],
        blocks=count_numbered(shapes, "blocks.{}.", first=0),
        levels=levels,
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> SAFMN:
    """MDAP's, 2026."""
    return SAFMN()
