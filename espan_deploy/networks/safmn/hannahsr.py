"""HannahSR: NTIRE 2025 efficient SR, team HannahSR.

RFDN's blocks with blueprint separable convolutions, and with attention to the variance in windows and over channels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import EvalConv, Normalise, in_turn, numbered
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.safmn.blocks import GatedFFN, depthwise, upsampler
from espan_deploy.networks.safmn.distillation import Block, ChannelReweighting, Parts, VarianceESA, mirrored_conv
from espan_deploy.networks.safmn.local_attention import BodyNorm, in_local_windows, similarity


class BiasedESA(VarianceESA):
    """HannahSR's: one convolution more at full size, and a learnt bias is taken from the attention."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__(channels, mid_channels, lambda width: mirrored_conv(width, width), F.gelu)
        self.conv_f_3 = EvalConv(mid_channels, mid_channels)
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def at_full_size(self, squeezed: Tensor) -> Tensor:
        out: Tensor = super().at_full_size(squeezed) + self.conv_f_3(squeezed)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.attention(x) - self.bias)


class SparseAttention(nn.Module):
    """HannahSR's channel attention, in local windows of 96 pixels: negative similarities count as none. No biases."""

    side = 96

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = depthwise(3 * channels, 3, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project_out(in_local_windows(self.qkv_dwconv(self.qkv(x)), self.side, self.attend))
        return out

    def attend(self, features: Tensor) -> Tensor:
        """(windows, 3 * channels, pixels) -> (windows, channels, pixels)."""
        count, channels, pixels = features.shape
        heads = self.temperature.shape[0]
        query, key, value = features.reshape(count, 3, heads, channels // (3 * heads), pixels).unbind(1)
        attended = F.relu(similarity(query, key) * self.temperature) @ value
        return attended.reshape(count, channels // 3, pixels)


class SparseAttentionBlock(nn.Module):
    """The attention and a gated feed-forward, each normalised before and with a residual."""

    def __init__(self, channels: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm3 = BodyNorm(channels)
        self.norm4 = BodyNorm(channels)
        self.restormer_attn = SparseAttention(channels, heads)
        self.restormer_ffn = GatedFFN(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.restormer_attn(self.norm3(x)) + x
        out: Tensor = self.restormer_ffn(self.norm4(x)) + x
        return out


class HannahSR(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), not clipped.

    A second pair of convolutions of the image joins what the blocks make.
    """

    def __init__(
        self,
        *,
        channels: int = 24,
        distilled: int = 12,
        esa_channels: int = 6,
        hidden: int = 48,
        heads: int = 3,
        blocks: int = 4,
        scale: int = 4,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(1.0)
        self.fea_conv = EvalConv(3, channels)
        parts = Parts(
            distil=lambda width: mirrored_conv(width, width),
            end=lambda width, out: nn.Conv2d(width, out, 3, padding=1, groups=out),
            spatial=BiasedESA,
            channel=ChannelReweighting,
            mix=partial(SparseAttentionBlock, hidden=hidden, heads=heads),
        )
        self.blocks = blocks
        for i in range(blocks):
            self.add_module(f"B{i + 1}", Block(channels, distilled, esa_channels, parts))
        self.res_1 = EvalConv(3, channels)
        self.res_2 = nn.Conv2d(channels, channels, 1)
        self.upsampler = upsampler(channels, scale, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        image = self.normalise(x)
        shallow = self.fea_conv(image)
        deep = in_turn(numbered(self, "B{}", self.blocks), shallow)[-1]
        upscaled: Tensor = self.upsampler(self.res_2(self.res_1(image)) + shallow + deep) + self.normalise.mean
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A HannahSR of the widths, depth, heads and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = HannahSR(
        channels=shapes["fea_conv.eval_conv.weight"][0],
        distilled=shapes["B1.c1_d.weight"][0],
        esa_channels=shapes["B1.esa.body.0.conv1.weight"][0],
        hidden=shapes["B1.ea.restormer_ffn.project_out.weight"][1],
        heads=shapes["B1.ea.restormer_attn.temperature"][0],
        blocks=count_numbered(shapes, "B{}."),
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> HannahSR:
    """HannahSR's, 2025."""
    return HannahSR()
