"""FMDN: NTIRE 2025 efficient SR, team XUPTBoys.

RFDN's blocks with depthwise kernels of several shapes for convolutions, and with attention to the variance in windows
and over the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import Normalise, in_turn, numbered
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.grids import adaptive_max_pool, resize_nearest
from espan_deploy.networks.safmn.blocks import depthwise, normalise, row_kernels, upsampler, variance_over_image
from espan_deploy.networks.safmn.distillation import Block, ChannelReweighting, Parts, VarianceESA, mirrored_conv
from espan_deploy.networks.safmn.local_attention import BodyNorm

DIVISOR = 8
"""The coarse grid is the image's size over this."""


class ResidualESA(VarianceESA):
    """FMDN's: the attended features are added to the features."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__(channels, mid_channels, RowsConv, F.relu)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x) + x


class RowsConv(nn.Module):
    """A 1x1, then a third of the channels each through a depthwise 3x3, 5x3 and 3x5, each added to the next; GELU.

    parts: 4 puts two more 3x3, on a last quarter, behind these.
    """

    def __init__(self, channels: int, parts: int = 3) -> None:
        super().__init__()
        self.parts = parts
        self.conv1 = nn.Conv2d(channels, channels, 1)
        for i, kernel in enumerate(row_kernels(channels // parts, parts), 1):
            self.add_module(f"conv2_{i}", kernel)

    def forward(self, x: Tensor) -> Tensor:
        convs = numbered(self, "conv2_{}", self.parts)
        return F.gelu(torch.cat(cascade(self.conv1(x).chunk(self.parts, 1), convs), 1) + x)


class FeatureRefinement(nn.Module):
    """FMDN's channel attention: half of the features modulated by a coarse grid and the variance over the image, the
    other half through depthwise kernels of three shapes."""

    PARTS = 3

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear_0 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv0 = nn.Conv2d(channels, channels, 1)
        self.dwconv = depthwise(channels, 3)
        for i, kernel in enumerate(row_kernels(channels // self.PARTS, self.PARTS), 1):
            self.add_module(f"conv2_{i}", kernel)
        self.linear_2 = nn.Conv2d(channels, channels, 1)
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.belt = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        coarse, fine = self.linear_0(normalise(x)).chunk(2, 1)
        pooled = self.dwconv(adaptive_max_pool(coarse, DIVISOR))
        mixed = F.gelu(self.conv0(pooled * self.alpha + variance_over_image(coarse) * self.belt))
        modulated = coarse * resize_nearest(mixed, *x.shape[2:])
        parts = cascade(fine.chunk(self.PARTS, 1), numbered(self, "conv2_{}", self.PARTS))
        out: Tensor = self.linear_2(torch.cat(parts, 1) + fine + modulated)
        return out + x


class RowsFFN(nn.Module):
    """FMDN's gated feed-forward: two depthwise kernels of 5x2 and 2x5. No biases."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        wide = 2 * hidden
        self.project_in = nn.Conv2d(channels, wide, 1, bias=False)
        self.dwconv1 = nn.Conv2d(wide, wide, (5, 2), groups=wide, bias=False)
        self.dwconv2 = nn.Conv2d(wide, wide, (2, 5), groups=wide, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Of an even kernel's padding, what is over stands behind.
        features = self.dwconv1(F.pad(self.project_in(x), (0, 1, 2, 2)))
        gate, features = self.dwconv2(F.pad(features, (2, 2, 0, 1))).chunk(2, 1)
        out: Tensor = self.project_out(F.gelu(gate) * features)
        return out


class FeedForward(nn.Module):
    """FMDN's feed-forward, normalised before and with a residual."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm4 = BodyNorm(channels)
        self.restormer_ffn = RowsFFN(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.restormer_ffn(self.norm4(x)) + x
        return out


class FMDN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 9. Returns (N, 3, scale * H, scale * W), not clipped.

    All blocks but the last are joined and go through it; it alone reweighs channels by their contrast.
    """

    def __init__(
        self,
        *,
        channels: int = 24,
        distilled: int = 12,
        esa_channels: int = 6,
        hidden: int = 48,
        blocks: int = 4,
        scale: int = 4,
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.normalise = Normalise(1.0)
        self.fea_conv = nn.Conv2d(3, channels, 3, padding=1)
        parts = Parts(
            distil=partial(RowsConv, parts=4),
            end=mirrored_conv,
            spatial=ResidualESA,
            channel=FeatureRefinement,
            mix=partial(FeedForward, hidden=hidden),
        )
        for i in range(1, blocks + 1):
            own = replace(parts, channel=ChannelReweighting) if i == blocks else parts
            self.add_module(f"B{i}", Block(channels, distilled, esa_channels, own))
        self.c1 = nn.Conv2d((blocks - 1) * channels, channels, 1)
        self.c2 = mirrored_conv(channels, channels)
        self.upsampler = upsampler(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.fea_conv(self.normalise(x))
        outputs = in_turn(numbered(self, "B{}", self.blocks - 1), shallow)
        out = F.gelu(self.get_submodule(f"B{self.blocks}")(self.c1(torch.cat(outputs, 1))))
        upscaled: Tensor = self.upsampler(self.c2(out) + shallow) + self.normalise.mean
        return upscaled


def cascade(parts: Sequence[Tensor], convs: Sequence[nn.Module]) -> list[Tensor]:
    """Each part through its convolution and GELU, the result added to the next part before."""
    outputs: list[Tensor] = []
    for part, conv in zip(parts, convs, strict=True):
        outputs.append(F.gelu(conv(part + outputs[-1] if outputs else part)))
    return outputs


def build(shapes: Shapes) -> Architecture:
    """An FMDN of the widths, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = FMDN(
        channels=shapes["fea_conv.weight"][0],
        distilled=shapes["B1.c1_d.weight"][0],
        esa_channels=shapes["B1.esa.body.0.conv1.weight"][0],
        hidden=shapes["B1.ea.restormer_ffn.project_out.weight"][1],
        blocks=count_numbered(shapes, "B{}."),
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> FMDN:
    """XUPTBoys', 2025."""
    return FMDN()
