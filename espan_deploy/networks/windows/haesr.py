"""HAESR (NTIRE 2026, team HAESR): attention in windows, in grids over the whole image, and between channels.

A block works on ever fewer channels: large kernels, attention in a window that also sees some pixels around it, and
attention in a grid, one pixel of every cell and some halfway to the next. The later blocks take the first block's
attention weights over, and only have values of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import ESA, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.swinir import ChannelNorm
from espan_deploy.networks.windows.blocks import halves, mirrored
from espan_deploy.networks.windows.sampled import (
    Attention,
    ChannelAttention,
    GridAttention,
    LocalAttention,
    Pattern,
    corner,
    cross,
    star,
)

PARTS = 4
"""A large kernel convolves one part of the channels in four, and each stage hands one on."""

PATTERNS: tuple[Pattern, ...] = (star, cross, corner)
SHIFTS = ((True, True), (False, True), (True, False))
"""Of a block's three stages: what is seen around a window, and if a grid is also seen half a cell lower, or further."""


class LargeKernel(nn.Module):
    """A quarter of the channels, every fourth, weighted by its means and convolved by a row and a column."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        part = channels // PARTS
        self.DWConv_1xK = nn.Conv2d(part, part, (1, kernel_size), padding=(0, kernel_size // 2), groups=part)
        self.DWConv_Kx1 = nn.Conv2d(part, part, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=part)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        shuffled = x.reshape(-1, channels // PARTS, PARTS, height, width).transpose(1, 2).flatten(1, 2)
        part, rest = shuffled[:, : channels // PARTS], shuffled[:, channels // PARTS :]
        part = part * torch.sigmoid(part.mean((2, 3), keepdim=True))
        return F.gelu(self.conv1(torch.cat([self.DWConv_Kx1(self.DWConv_1xK(part)), rest], 1)))


class LocalBlock(nn.Module):
    """A depthwise 3x3 beside the large kernel."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.PLKB = LargeKernel(channels, kernel_size)
        self.DWConv3 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.conv1 = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv1(torch.cat([self.DWConv3(x), self.PLKB(x)], 1)))


class GatedFeedForward(nn.Module):
    """1x1, depthwise 3x3, one half's GELU times the other, 1x1; no biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = halves(self.dwconv(self.project_in(x)))
        out: Tensor = self.project_out(F.gelu(gate) * value)
        return out


class AttentionLayer(nn.Module):
    """Attention and gated feed-forward part, each of normalised features."""

    def __init__(self, attention: Attention, channels: int) -> None:
        super().__init__()
        self.cnorm = ChannelNorm(channels, eps=1e-6)
        self.attn = attention
        self.cnorm2 = ChannelNorm(channels, eps=1e-6)
        self.gfn = GatedFeedForward(channels)

    def forward(self, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        attended, weights = self.attn(self.cnorm(x), weights)
        x = x + attended
        return x + self.gfn(self.cnorm2(x)), weights


class ChannelBlock(nn.Module):
    """Attention between channels in windows, then strided."""

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        for i in (1, 2):
            self.add_module(f"canorm{i}", ChannelNorm(channels, eps=1e-6))
            self.add_module(f"cttn{i}", ChannelAttention(channels, window, strided=i == 2))
            self.add_module(f"cnorm{i}", ChannelNorm(channels, eps=1e-6))
            self.add_module(f"gfn{i}", GatedFeedForward(channels))

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2):
            canorm, cttn, cnorm, gfn = (self.get_submodule(f"{name}{i}") for name in ("canorm", "cttn", "cnorm", "gfn"))
            x = x + cttn(canorm(x))
            x = x + gfn(cnorm(x))
        return x


class Stages(nn.Module):
    """Three stages on four, three and two quarters of the channels, joined, then attention between channels."""

    def __init__(self, channels: int, window: int, extent: int, kernel_size: int, *, leads: bool) -> None:
        super().__init__()
        self.part = channels // PARTS
        for i, (pattern, shift) in enumerate(zip(PATTERNS, SHIFTS, strict=True)):
            width = channels - i * self.part
            inner = width - self.part
            local = LocalAttention(inner, window, extent, pattern, leads=leads)
            grid = GridAttention(inner, window, shift, leads=leads)
            self.add_module(f"LB{i + 1}", LocalBlock(width, kernel_size))
            self.add_module(f"SLA{i + 1}", AttentionLayer(local, inner))
            self.add_module(f"SGA{i + 1}", AttentionLayer(grid, inner))
            self.add_module(f"pw{i + 1}", nn.Conv2d(width if i < 2 else channels, width if i < 2 else channels, 1))
        self.BlockC = ChannelBlock(channels, window)

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """weights: those of the block that leads, in order; empty for that block, which appends them."""
        given = iter(tuple(weights))
        handed_on: list[Tensor] = []
        for i in (1, 2, 3):
            x = self.get_submodule(f"LB{i}")(x)
            local, x = x[:, : self.part], x[:, self.part :]
            for name in ("SLA", "SGA"):
                x, used = self.get_submodule(f"{name}{i}")(x, next(given, None))
                weights.append(used)
            x = self.get_submodule(f"pw{i}")(torch.cat([*(handed_on if i == 3 else ()), x, local], 1))
            if i < 3:
                handed_on.append(x[:, : self.part])
                x = x[:, self.part :]
        out: Tensor = self.BlockC(x)
        return out


class Group(nn.Module):
    """The stages, a 1x1 convolution, the input added, and ESA."""

    def __init__(self, channels: int, esa_channels: int, stages: Stages, *, leads: bool) -> None:
        super().__init__()
        self.stages = "residual_layer.0" if leads else "residual_layer"
        self.residual_layer = nn.ModuleList([stages]) if leads else stages
        self.res_end = nn.Conv2d(channels, channels, 1)
        self.esa = ESA(channels, esa_channels, nn.Conv2d(esa_channels, esa_channels, 3, padding=1), skip_conv=True)

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        out: Tensor = self.esa(self.res_end(self.get_submodule(self.stages)(x, weights)) + x)
        return out


class HAESR(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 9. Returns (N, 3, scale * H, scale * W), not clipped.

    blocks: of which the first leads. extent: the pixels that a window sees beyond its own on each side.
    """

    def __init__(
        self,
        *,
        channels: int = 48,
        esa_channels: int = 16,
        blocks: int = 3,
        window: int = 8,
        extent: int = 4,
        kernel_size: int = 31,
        scale: int = 4,
    ) -> None:
        super().__init__()
        self.blocks, self.window, self.scale = blocks, window, scale
        self.input = nn.Conv2d(3, channels, 3, padding=1)
        for i in range(blocks):
            stages = Stages(channels, window, extent, kernel_size, leads=i == 0)
            self.add_module(f"block{i}", Group(channels, esa_channels, stages, leads=i == 0))
        self.output = nn.Conv2d(channels, channels, 3, padding=1)
        self.up = shuffle_tail(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), scale)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        shallow = self.input(mirrored(x, self.window))
        deep, weights = shallow, list[Tensor]()
        for i in range(self.blocks):
            deep = self.get_submodule(f"block{i}")(deep, weights if i == 0 else list(weights))
        upscaled: Tensor = self.up(self.output(deep) + shallow)
        return upscaled[:, :, : self.scale * height, : self.scale * width]


def build(shapes: Shapes) -> Architecture:
    """A HAESR of the widths, depth, windows and scale that the shapes tell."""
    first = "block0.residual_layer.0"
    window = round(shapes[f"{first}.SLA1.attn.rel_pos_bias"][1] ** 0.5)
    around = shapes[f"{first}.SLA1.attn.rel_pos_bias"][2] - window**2
    scale = scale_of_tail(shapes["up.0.weight"][0])
    module = HAESR(
        channels=shapes["input.weight"][0],
        esa_channels=shapes["block0.esa.conv1.weight"][0],
        blocks=count_numbered(shapes, "block{}.", first=0),
        window=window,
        extent=around // 8,
        kernel_size=shapes[f"{first}.LB1.PLKB.DWConv_Kx1.weight"][2],
        scale=scale,
    )
    stored = frozenset(key for key in shapes if ".ext_unfold." in key)
    return Architecture(module, scale, "deploy", redundant=stored)


def reference() -> HAESR:
    """HAESR's, 2026."""
    return HAESR()
