"""RCUNet: NTIRE 2025 efficient SR, team Pixel Alchemists ("resolution-consistent UNet").

Four blocks at one resolution, the later two joined to the outputs of the earlier ones; in each, four 3x3 convolutions
see only the first channels. No biases anywhere. There is one form: nothing in it is re-parameterised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import ESA, same_conv
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail

CONVOLUTIONS = 4
BLOCKS = 4


class PartialBlock(nn.Module):
    """Four convolutions of the first ``mid_channels``; the rest, the second's output and the last's; a 1x1; ESA."""

    def __init__(self, channels: int, mid_channels: int, esa_channels: int) -> None:
        super().__init__()
        self.mid_channels = mid_channels
        for i in range(1, CONVOLUTIONS + 1):
            self.add_module(f"conv{i}", same_conv(mid_channels, mid_channels, bias=False))
        self.c5 = nn.Conv2d(channels + mid_channels, channels, 1, bias=False)
        conv3 = same_conv(esa_channels, esa_channels, bias=False)
        self.esa = ESA(channels, esa_channels, conv3, skip_conv=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stages = [x[:, : self.mid_channels]]
        for i in range(1, CONVOLUTIONS + 1):
            stages.append(F.leaky_relu(self.get_submodule(f"conv{i}")(stages[-1])))
        joined = torch.cat([x[:, self.mid_channels :], stages[2], stages[4]], 1)
        attended: Tensor = self.esa(self.c5(joined))
        return attended


class RCUNet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 48, mid_channels: int = 30, esa_channels: int = 16, scale: int = 4) -> None:
        super().__init__()
        self.conv_first = same_conv(3, channels, bias=False)
        for i in range(1, BLOCKS + 1):
            self.add_module(f"b{i}", PartialBlock(channels, mid_channels, esa_channels))
        self.conv_tail = same_conv(channels, channels, bias=False)
        self.conv_last = same_conv(channels, 3 * scale**2, bias=False)
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        b1, b2, b3, b4 = (self.get_submodule(f"b{i}") for i in range(1, BLOCKS + 1))
        shallow = self.conv_first(x)
        first = b1(shallow)
        second = b2(first)
        third = b3(second) + second
        fourth = b4(third) + first
        upscaled: Tensor = self.upsampler(self.conv_last(self.conv_tail(fourth) + shallow))
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """An RCUNet of the widths and scale that the shapes tell."""
    if (blocks := count_numbered(shapes, "b{}.")) != BLOCKS:
        raise ValueError(f"{blocks} blocks, and RCUNet is wired for {BLOCKS}")
    scale = scale_of_tail(shapes["conv_last.weight"][0])
    module = RCUNet(
        channels=shapes["conv_first.weight"][0],
        mid_channels=shapes["b1.conv1.weight"][0],
        esa_channels=shapes["b1.esa.conv1.weight"][0],
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> RCUNet:
    """Pixel Alchemists', 2025."""
    return RCUNet()
