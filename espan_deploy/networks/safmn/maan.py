"""MAAN: NTIRE 2025 efficient SR, team MegastudyEdu Vision AI ("Multi-scale Aggregation Attention Network").

Blocks of a convolutional modulation, where three quarters of the features pass large separable kernels (11, 23 and 35
pixels), and a feed-forward, each behind a layer normalisation over channels and scaled by a learnt factor per channel.

There is one form: the large kernels were trained with more branches, but their code and keys are not published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import Normalise
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.safmn.blocks import ChannelNorm, depthwise, upsampler

EPSILON = 1e-6


def separable(channels: int, near: int, far: int, dilation: int) -> list[nn.Module]:
    """A row and a column of ``near`` pixels, then of ``far`` ones with this dilation."""
    return [
        depthwise(channels, (1, near)),
        depthwise(channels, (near, 1)),
        depthwise(channels, (1, far), dilation=dilation),
        depthwise(channels, (far, 1), dilation=dilation),
    ]


class MultiscaleLSK(nn.Module):
    """The last three quarters of the channels through kernels of 11, 23 and 35 pixels; the first as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.widths = [channels - 3 * quarter, quarter, quarter, quarter]
        self.dwconv_LSKA_11 = nn.Sequential(*separable(quarter, 3, 5, 2))
        self.dwconv_LSKA_23 = nn.Sequential(*separable(quarter, 5, 7, 3))
        self.dwconv_LSKA_35 = nn.Sequential(*separable(quarter, 5, 11, 3))

    def forward(self, x: Tensor) -> Tensor:
        same, small, middle, large = torch.split(x, self.widths, 1)
        return torch.cat([same, self.dwconv_LSKA_11(small), self.dwconv_LSKA_23(middle), self.dwconv_LSKA_35(large)], 1)


class ConvMod(nn.Module):
    """Features multiplied by what the large kernels make of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, EPSILON)
        self.a = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), MultiscaleLSK(channels))
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        out: Tensor = self.proj(self.a(x) * self.v(x))
        return out


class MLP(nn.Module):
    """A feed-forward with a depthwise 3x3 beside a shortcut."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, EPSILON)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.pos = depthwise(hidden, 3)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = F.gelu(self.fc1(self.norm(x)))
        out: Tensor = self.fc2(features + F.gelu(self.pos(features)))
        return out


class Block(nn.Module):
    """Modulation and feed-forward, each scaled per channel and added."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.attn = ConvMod(channels)
        self.mlp = MLP(channels, hidden)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), 1e-6))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1.view(1, -1, 1, 1) * self.attn(x)
        out: Tensor = x + self.layer_scale_2.view(1, -1, 1, 1) * self.mlp(x)
        return out


class Layer(nn.Module):
    """Blocks in a chain and a 1x1, with a shortcut around the 1x1."""

    def __init__(self, channels: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(channels, hidden) for _ in range(depth)))
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        out: Tensor = self.conv(x) + x
        return out


class LSKAT(nn.Module):
    """The attention that ends the body: features multiplied by a separable kernel of 25 pixels of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU())
        self.att = nn.Sequential(*separable(channels, 7, 7, 3), nn.Conv2d(channels, channels, 1))
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        out: Tensor = self.conv1(x * self.att(x))
        return out


class MAAN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    depths: how many blocks each layer has.
    """

    def __init__(
        self, *, channels: int = 48, hidden: int = 96, depths: tuple[int, ...] = (2, 3, 2), scale: int = 4
    ) -> None:
        super().__init__()
        self.normalise = Normalise(1.0)
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = nn.Sequential(*(Layer(channels, hidden, depth) for depth in depths))
        self.norm = ChannelNorm(channels, EPSILON)
        self.conv_after_body = LSKAT(channels)
        self.upsample = upsampler(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_first(self.normalise(x))
        deep = self.conv_after_body(self.norm(self.layers(shallow)))
        upscaled: Tensor = self.upsample(deep + shallow) + self.normalise.mean
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A MAAN of the widths, depths and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsample.0.weight"][0])
    layers = count_numbered(shapes, "layers.{}.", first=0)
    module = MAAN(
        channels=shapes["conv_first.weight"][0],
        hidden=shapes["layers.0.blocks.0.mlp.fc1.weight"][0],
        depths=tuple(count_numbered(shapes, f"layers.{i}.blocks.{{}}.", first=0) for i in range(layers)),
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> MAAN:
    """MegastudyEdu Vision AI's, 2025."""
    return MAAN()
