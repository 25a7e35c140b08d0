"""GLoReNet: NTIRE 2025 efficient SR, team Z6 (``CASRv016_hybrid`` in its code).

Two of SPAN's blocks, joined as SPAN joins its own, then two pairs of convolutions with enhanced spatial attention.
The entrants compute in float16; here, as everywhere, the network is float32 and precision comes later.

There is one form: only the folded weights and their code are published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import SPAB, DeepESA, same_conv
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail


class Conv3x3(nn.Module):
    """A 3x3 convolution under ``conv3x3``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv3x3 = same_conv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3x3(x)
        return out


class ActivatedConv(Conv3x3):
    """The same, then GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x))


class GLoReNet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(
        self,
        *,
        channels: int = 48,
        span_blocks: int = 2,
        esa_blocks: int = 2,
        esa_channels: int = 16,
        scale: int = 4,
    ) -> None:
        super().__init__()
        self.head = ActivatedConv(3, channels)
        self.backbone_span = nn.ModuleList(nn.ModuleList([SPAB(Conv3x3, channels)]) for _ in range(span_blocks))
        self.transition = nn.Sequential(same_conv(4 * channels, channels, 1), ActivatedConv(channels, channels))
        self.input_conv1 = ActivatedConv(channels, channels)
        self.backbone_esa = nn.Sequential(
            *(
                nn.Sequential(
                    ActivatedConv(channels, channels),
                    ActivatedConv(channels, channels),
                    DeepESA(channels, esa_channels),
                )
                for _ in range(esa_blocks)
            )
        )
        self.input_conv2 = Conv3x3(channels, 3 * scale**2)
        self.upsampler1 = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        out, outputs, inner = shallow, [], shallow
        for stage in self.backbone_span:
            assert isinstance(stage, nn.ModuleList)
            block = stage[0]
            assert isinstance(block, SPAB)
            out, inner = block.with_first(out)
            outputs.append(out)
        fused = self.transition(torch.cat([shallow, outputs[0], out, inner], 1))
        middle = self.input_conv1(fused + shallow)
        upscaled: Tensor = self.upsampler1(self.input_conv2(self.backbone_esa(middle) + middle))
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A GLoReNet of the widths, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["input_conv2.conv3x3.weight"][0])
    module = GLoReNet(
        channels=shapes["head.conv3x3.weight"][0],
        span_blocks=count_numbered(shapes, "backbone_span.{}.", first=0),
        esa_blocks=count_numbered(shapes, "backbone_esa.{}.", first=0),
        esa_channels=shapes["backbone_esa.0.2.conv1.weight"][0],
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> GLoReNet:
    """Z6's, 2025."""
    return GLoReNet()
