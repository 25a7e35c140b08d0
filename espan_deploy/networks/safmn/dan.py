"""DAN (NTIRE 2025 efficient SR, team VPEG_C) and ZenoSR (NTIRE 2026, team ZenoSR): three attentions in each block.

A block distils features from three depthwise convolutions, modulates them by a pooled image and the variance
(SAFMN's way), and attends over channels in local windows of 72 pixels. After the pixel shuffle four depthwise
convolutions refine the colours. ZenoSR has four blocks instead of six, a little wider, and weighs each before they are
joined.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.safmn.blocks import JoinedBlocks, SpatialModulation, depthwise
from espan_deploy.networks.safmn.local_attention import ChannelAttention

FIRST_WEIGHT = 5
"""ZenoSR's weights of its blocks are ``alpha_5`` and on."""

REFINEMENTS = 4


class Distillation(nn.Module):
    """Three pointwise-depthwise residuals in a chain; half as many channels of each are kept and joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        for i in (1, 2, 3):
            self.add_module(f"conv{i}", nn.Conv2d(channels, half, 1))
            self.add_module(f"dwconv{i}", nn.Sequential(nn.Conv2d(channels, channels, 1), depthwise(channels, 3)))
        self.conv4 = nn.Conv2d(channels, half, 3, padding=1, groups=half)
        self.conv5 = nn.Conv2d(4 * half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i in (1, 2, 3):
            kept.append(F.gelu(self.get_submodule(f"conv{i}")(x)))
            x = F.gelu(self.get_submodule(f"dwconv{i}")(x) + x)
        kept.append(F.gelu(self.conv4(x)))
        out: Tensor = self.conv5(torch.cat(kept, 1))
        return out


class Block(nn.Module):
    """Distillation, spatial modulation and channel attention in a chain, and one residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local_handle = Distillation(channels)
        self.spatial_attn = SpatialModulation(channels)
        self.channel_attn = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.channel_attn(self.spatial_attn(self.local_handle(x))) + x
        return out


class DAN(JoinedBlocks):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 8. Returns (N, 3, scale * H, scale * W), not clipped.

    weighted: whether each block's output is multiplied by learnt factors before all are joined (ZenoSR).
    """

    def __init__(self, *, channels: int = 16, blocks: int = 6, scale: int = 4, weighted: bool = False) -> None:
        super().__init__(Block, Distillation(channels), channels=channels, blocks=blocks, scale=scale)
        self.weight_names = [f"alpha_{FIRST_WEIGHT + i}" for i in range(blocks)] if weighted else []
        for name in self.weight_names:
            self.register_parameter(name, nn.Parameter(torch.ones(1, channels, 1, 1)))
        refine = [(nn.GELU(), depthwise(3, 3, bias=False)) for _ in range(REFINEMENTS)]
        self.refine = nn.Sequential(*(layer for pair in refine for layer in pair))

    def weighed(self, outputs: list[Tensor]) -> list[Tensor]:
        weights = [self.get_parameter(name) for name in self.weight_names]
        return [weight * out for weight, out in zip(weights, outputs, strict=True)] if weights else outputs

    def refined(self, image: Tensor) -> Tensor:
        out: Tensor = self.refine(image)
        return out


def build(shapes: Shapes) -> Architecture:
    """A DAN or ZenoSR of the width, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["to_img.0.weight"][0])
    module = DAN(
        channels=shapes["to_feat.weight"][0],
        blocks=count_numbered(shapes, "B{}."),
        scale=scale,
        weighted=f"alpha_{FIRST_WEIGHT}" in shapes,
    )
    return Architecture(module, scale, "deploy")


def reference() -> DAN:
    """VPEG_C's, 2025."""
    return DAN()


def zeno_sr() -> DAN:
    """ZenoSR's, 2026."""
    return DAN(channels=18, blocks=4, weighted=True)
