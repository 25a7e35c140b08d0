"""NanoSR: NTIRE 2025 efficient SR, team NanoSR ("Reparameterized Pixel Attention Network", factsheet).

SPAN with 48 channels, a further convolution before each attention block, and MobileNet-like re-parameterised
convolutions (RepMBConv, Wang et al., "PlainUSR", ACCV 2024).

Deploy form: each convolution is one ``conv``. Training form: ``expand_conv``, ``fea_conv``, ``reduce_conv``... with
the original's keys.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import SPAB, Conv, Normalise, bias_padded, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail


class PlainConv(nn.Module):
    """Deploy form: a 3x3 convolution under ``conv``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class RepMBConv(nn.Module):
    """Training form: 1x1 expansion, 3x3, 1x1 reduction, beside a 1x1. The expansion's bias fills its padding."""

    deploy_key = "conv"

    def __init__(self, in_channels: int, out_channels: int, *, ratio: int = 2) -> None:
        super().__init__()
        self.identity_conv = nn.Conv2d(in_channels, out_channels, 1)
        self.expand_conv = nn.Conv2d(in_channels, in_channels * ratio, 1)
        self.fea_conv = nn.Conv2d(in_channels * ratio, out_channels * ratio, 3)
        self.reduce_conv = nn.Conv2d(out_channels * ratio, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        expand = self.expand_conv
        assert expand.bias is not None
        padded = bias_padded(x, expand.weight, expand.bias)
        out: Tensor = self.reduce_conv(self.fea_conv(padded)) + self.identity_conv(x)
        return out

    linear = forward


class LearntScale(nn.Module):
    """A factor per channel, computed from a learnt vector and not from the image.

    Keys: ``tensor`` (1, C, 1, 1), ``se.1.weight`` and ``se.3.weight`` (without biases).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tensor = nn.Parameter(torch.full((1, channels, 1, 1), 0.1))
        self.se = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // 4, bias=False),
            nn.SiLU(),
            nn.Linear(channels // 4, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.se(self.tensor).view(1, -1, 1, 1)
        return scaled


class RepMBConvSE(nn.Module):
    """Training form: as :class:`RepMBConv`, with a learnt scale and two skips instead of the 1x1 beside it."""

    deploy_key = "conv"

    def __init__(self, channels: int, *, ratio: int = 2) -> None:
        super().__init__()
        self.expand_conv = nn.Conv2d(channels, channels * ratio, 1)
        self.fea_conv = nn.Conv2d(channels * ratio, channels * ratio, 3)
        self.reduce_conv = nn.Conv2d(channels * ratio, channels, 1)
        self.se = LearntScale(channels * ratio)

    def forward(self, x: Tensor) -> Tensor:
        expand = self.expand_conv
        assert expand.bias is not None
        padded = bias_padded(x, expand.weight, expand.bias)
        out: Tensor = self.reduce_conv(self.se(self.fea_conv(padded)) + expand(x)) + x
        return out

    linear = forward


class RepBlock(nn.Module):
    """A convolution, then the attention block, whose convolutions are named ``conv_1..3`` here."""

    def __init__(self, conv: Conv, extractor: nn.Module, channels: int) -> None:
        super().__init__()
        self.feature_extractor = extractor
        self.pixel_attention = SPAB(conv, channels, conv_name="conv_{}")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.pixel_attention.with_first(self.feature_extractor(x))


class NanoSR(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    ratio: the expansion of the training form's convolutions; None gives the deploy form.
    """

    def __init__(self, *, channels: int = 48, blocks: int = 6, scale: int = 4, ratio: int | None = None) -> None:
        super().__init__()
        conv: Conv = PlainConv if ratio is None else partial(RepMBConv, ratio=ratio)
        self.blocks = blocks
        self.normalise = Normalise()
        self.conv_1 = conv(3, channels)
        for i in range(blocks):
            extractor = PlainConv(channels, channels) if ratio is None else RepMBConvSE(channels, ratio=ratio)
            self.add_module(f"block_{i + 1}", RepBlock(conv, extractor, channels))
        self.conv_2 = conv(channels, channels)
        self.conv_cat = nn.Conv2d(4 * channels, channels, 1)
        self.upsampler = shuffle_tail(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(self.normalise(x))
        out, outputs, inner = shallow, [], shallow
        for i in range(1, self.blocks + 1):
            out, inner = self.get_submodule(f"block_{i}")(out)
            outputs.append(out)
        fused = self.conv_cat(torch.cat([shallow, self.conv_2(out), outputs[0], inner], 1))
        upscaled: Tensor = self.upsampler(fused)
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A NanoSR of the widths, depth, scale and form that the shapes tell."""
    expansion = shapes.get("conv_2.expand_conv.weight")
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = NanoSR(
        channels=shapes["conv_cat.weight"][0],
        blocks=count_numbered(shapes, "block_{}."),
        scale=scale,
        ratio=expansion[0] // expansion[1] if expansion else None,
    )
    return Architecture(module, scale, "training" if expansion else "deploy")


def reference() -> NanoSR:
    """NanoSR's, 2025."""
    return NanoSR()
