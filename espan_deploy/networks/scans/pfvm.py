"""PFVM (NTIRE 2025, team GXZY AI): Parameter-free Vision Mamba, a scan in four directions and SPAN's attention.

After MambaIR: Guo et al., "MambaIR: A Simple Baseline for Image Restoration with State-Space Model", ECCV 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import symmetric_attention
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.scans.blocks import SelectiveScan
from espan_deploy.networks.swinir import ChannelLinear, ChannelNorm, ResidualGroup, SwinFrame

DIRECTIONS = 4


class FourWayScan(SelectiveScan):
    """Rows, columns, and both backwards: their scans are summed, normalised and gated."""

    def __init__(self, channels: int, inner: int, state: int, rank: int) -> None:
        super().__init__(DIRECTIONS, inner, state, rank)
        self.inner = inner
        self.in_proj = ChannelLinear(channels, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.out_norm = ChannelNorm(inner)
        self.out_proj = ChannelLinear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.in_proj(x)
        features, gate = projected[:, : self.inner], projected[:, self.inner :]
        features = F.silu(self.conv2d(features))
        height, width = x.shape[2:]
        forwards = torch.stack([features.flatten(2), features.transpose(2, 3).flatten(2)], 1)
        y = self.scanned(torch.cat([forwards, forwards.flip(3)], 1))
        both = y[:, :2] + y[:, 2:].flip(3)
        by_rows = both[:, 0].reshape(-1, self.inner, height, width)
        by_columns = both[:, 1].reshape(-1, self.inner, width, height).transpose(2, 3)
        out: Tensor = self.out_proj(self.out_norm(by_rows + by_columns) * F.silu(gate))
        return out


class ParameterFreeAttention(nn.Module):
    """A 3x3 convolution, SiLU, and SPAN's symmetric attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return symmetric_attention(F.silu(self.conv3x3(x)), x)


class Block(nn.Module):
    """Scan and attention, with a learnt factor for each channel on each of the three ways past them."""

    def __init__(self, channels: int, inner: int, state: int, rank: int) -> None:
        super().__init__()
        self.ln_1 = ChannelNorm(channels)
        self.self_attention = FourWayScan(channels, inner, state, rank)
        self.conv_blk = ParameterFreeAttention(channels)
        self.ln_2 = ChannelNorm(channels)
        for name in ("skip_scale", "skip_scale2", "skip_scale3"):
            self.register_parameter(name, nn.Parameter(torch.ones(channels)))

    def forward(self, x: Tensor) -> Tensor:
        past_scan, past_attention, past_both = (
            self.get_parameter(name)[:, None, None] for name in ("skip_scale", "skip_scale2", "skip_scale3")
        )
        out = x * past_scan + self.self_attention(self.ln_1(x))
        out = out * past_attention + self.conv_blk(self.ln_2(out))
        joined: Tensor = out + x * past_both
        return joined


def pfvm(
    *,
    channels: int = 60,
    inner: int = 120,
    state: int = 16,
    rank: int = 4,
    depths: Sequence[int] = (4,),
    scale: int = 4,
) -> SwinFrame:
    """PFVM: depths are blocks of each group."""

    def group(depth: int) -> nn.Module:
        body = nn.Sequential()
        body.add_module("blocks", nn.Sequential(*(Block(channels, inner, state, rank) for _ in range(depth))))
        return ResidualGroup(body, channels)

    return SwinFrame((group(depth) for depth in depths), channels, scale)


def build(shapes: Shapes) -> Architecture:
    """A PFVM of the widths, depths and scale that the shapes tell."""
    scan = "layers.0.residual_group.blocks.0.self_attention"
    _, inner, rank = shapes[f"{scan}.dt_projs_weight"]
    scale = scale_of_tail(shapes["upsample.0.weight"][0])
    module = pfvm(
        channels=shapes["conv_first.weight"][0],
        inner=inner,
        state=shapes[f"{scan}.A_logs"][1],
        rank=rank,
        depths=[
            count_numbered(shapes, f"layers.{i}.residual_group.blocks." + "{}.", first=0)
            for i in range(count_numbered(shapes, "layers.{}.", first=0))
        ],
        scale=scale,
    )
    return Architecture(module, scale, "deploy")
