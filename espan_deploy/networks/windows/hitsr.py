"""HiT-SRF (NTIRE 2025, team IPCV) and BVI-SRF (2025, team BVIVSR; 2026, BVIESR): windows that grow and shrink.

HiT-SR: Zhang et al., "HiT-SR: Hierarchical Transformer for Efficient Image Super-Resolution", ECCV 2024. A block
correlates instead of attending, without softmax: pixels with a pooled window (spatial), and channels with channels.
BVI-SRF keeps the channels' correlation, and joins the blocks of its one group by skips, as a U shape does.

Two sums of the original are taken in another order, with the same result: the spatial correlation is multiplied by
its values before the pixels (a product of a few channels instead of all pixels), and the position's bias is averaged
before it is looked up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.swinir import ChannelLinear, ChannelNorm, ConvFFN, ResidualGroup, SwinFrame
from espan_deploy.networks.windows.blocks import halves, map_of, mirrored, windows_of

BASE_WINDOW = 8
"""Larger windows are pooled to this many rows and columns before pixels are correlated with them."""

HIT_WINDOWS = (4, 8, 16, 32, 48, 64)
BVI_WINDOWS = (64, 32, 8, 32, 64)
"""As published: rows and columns of the windows of a group's blocks. Only the pooling can be told from shapes."""


class DualExtraction(nn.Module):
    """Features of a neighbourhood times features of the pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels // 5, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels // 5, channels // 5, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels // 5, channels, 1),
        )
        self.linear = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) * self.linear(x)
        return out


class PositionBias(nn.Module):
    """A bias for every offset inside a window, computed from the offset by a small network (CrossFormer, ICLR 2022)."""

    offsets: Tensor
    rows: Tensor

    def __init__(self, channels: int, heads: int, window: int, pooling: int) -> None:
        super().__init__()
        width = channels // 4
        self.window, self.pooling = window, pooling
        self.pos_proj = nn.Linear(2, width)
        for name, out in (("pos1", width), ("pos2", width), ("pos3", heads)):
            self.add_module(name, nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out)))
        offset = torch.arange(1 - window, window, dtype=torch.float32)
        self.register_buffer("offsets", torch.cartesian_prod(offset, offset), persistent=False)
        pixel, pooled = torch.arange(window), torch.arange(window // pooling)
        self.register_buffer("rows", window + pixel - (pooled[:, None] + 1) * pooling, persistent=False)

    def forward(self) -> Tensor:
        """(heads, pooled pixels, pixels): the mean bias of a pooled pixel's offsets to each pixel."""
        side = 2 * self.window - 1
        bias = self.pos_proj(self.offsets)
        for name in ("pos1", "pos2", "pos3"):
            bias = self.get_submodule(name)(bias)
        pooled = F.avg_pool2d(bias.transpose(0, 1).reshape(-1, side, side), self.pooling, stride=1)
        # (heads, pooled row, row, pooled column, column)
        looked_up = pooled[:, self.rows][..., self.rows]
        return looked_up.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)


class ChannelCorrelation(nn.Module):
    """Channels correlated with channels, in windows of the map mirrored to whole ones."""

    def __init__(self, channels: int, window: int, *, joined: int = 1) -> None:
        super().__init__()
        self.window = window
        self.qv = DualExtraction(channels)
        self.proj = ChannelLinear(channels // 2 * joined, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        query, value = halves(self.qv(mirrored(x, self.window)))
        out = map_of(self.correlate(query, value), self.window, *query.shape[2:])
        projected: Tensor = self.proj(out[:, :, :height, :width])
        return projected

    def correlate(self, query: Tensor, value: Tensor) -> Tensor:
        """query, value: (N, C, H, W) maps of whole windows. Returns (windows, C, pixels)."""
        pixels, values = windows_of(query, self.window), windows_of(value, self.window)
        return pixels @ values.transpose(1, 2) / self.window**2 @ values


class SpatialChannelCorrelation(ChannelCorrelation):
    """Each pixel also correlated with the pooled window."""

    def __init__(self, channels: int, window: int, heads: int) -> None:
        super().__init__(channels, window, joined=2)
        self.heads = heads
        self.pooling = window // min(window, BASE_WINDOW)
        self.spatial_linear = nn.Linear(self.pooling**2, 1)
        self.pos = PositionBias(channels // 4, heads, window, self.pooling)

    def correlate(self, query: Tensor, value: Tensor) -> Tensor:
        pixels = self._split_heads(windows_of(query, self.window))
        pooled = self._split_heads(windows_of(self._pool(value), self.window // self.pooling))
        gram = pooled @ pooled.transpose(2, 3) / pooled.shape[2]
        spatial: Tensor = gram @ pixels + pooled @ self.pos()
        channels: Tensor = super().correlate(query, value)
        return torch.cat([spatial.flatten(1, 2), channels], 1)

    def _pool(self, value: Tensor) -> Tensor:
        channels = value.shape[1]
        weight = self.spatial_linear.weight.reshape(1, 1, self.pooling, self.pooling).expand(channels, -1, -1, -1)
        bias = self.spatial_linear.bias.expand(channels)
        return F.conv2d(value, weight, bias, stride=self.pooling, groups=channels)

    def _split_heads(self, windows: Tensor) -> Tensor:
        channels, pixels = windows.shape[1:]
        return windows.reshape(-1, self.heads, channels // self.heads, pixels)


class Block(nn.Module):
    """Correlation and feed-forward part, each normalised before it is added."""

    def __init__(self, correlation: ChannelCorrelation, channels: int, hidden: int) -> None:
        super().__init__()
        self.correlation = correlation
        self.norm1 = ChannelNorm(channels)
        self.mlp = ConvFFN(channels, hidden)
        self.norm2 = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.correlation(x))
        out: Tensor = x + self.norm2(self.mlp(x))
        return out


class Blocks(nn.Module):
    """Blocks one after another; with skips, the later half also gets the earlier half's outputs, last first."""

    def __init__(self, blocks: Sequence[nn.Module], channels: int, *, skips: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.skips = (len(blocks) - 1) // 2 if skips else 0
        if skips:
            self.convs = ChannelLinear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        depth = len(self.blocks)
        for i, block in enumerate(self.blocks):
            if i >= depth - self.skips:
                x = self.convs(torch.cat([x, outputs[depth - i - 1]], 1))
            x = block(x)
            outputs.append(x)
        return x


def hit_srf(
    *,
    channels: int = 60,
    hidden: int = 120,
    heads: int = 6,
    groups: int = 4,
    windows: Sequence[int] = HIT_WINDOWS,
    scale: int = 4,
) -> SwinFrame:
    """HiT-SRF: in every group, a block for each of these windows."""

    def group() -> nn.Module:
        correlations = (SpatialChannelCorrelation(channels, window, heads) for window in windows)
        blocks = [Block(correlation, channels, hidden) for correlation in correlations]
        return ResidualGroup(Blocks(blocks, channels, skips=False), channels)

    return SwinFrame((group() for _ in range(groups)), channels, scale)


def bvi_srf(
    *, channels: int = 48, hidden: int = 96, groups: int = 1, windows: Sequence[int] = BVI_WINDOWS, scale: int = 4
) -> SwinFrame:
    """BVI-SRF: channels' correlation only, and skips from the earlier blocks to the later."""

    def group() -> nn.Module:
        blocks = [Block(ChannelCorrelation(channels, window), channels, hidden) for window in windows]
        return ResidualGroup(Blocks(blocks, channels, skips=True), channels)

    return SwinFrame((group() for _ in range(groups)), channels, scale)


def build(shapes: Shapes, *, windows: Sequence[int] | None = None) -> Architecture:
    """A HiT-SRF or BVI-SRF of the widths, depth and scale that the shapes tell.

    windows: of each block of a group; by default as published. Raises ValueError where they fit no pooling in shapes.
    """
    block = "layers.0.residual_group.blocks.0"
    depth = count_numbered(shapes, "layers.0.residual_group.blocks.{}.", first=0)
    spatial = f"{block}.correlation.spatial_linear.weight" in shapes
    windows = tuple(windows or (HIT_WINDOWS if spatial else BVI_WINDOWS))
    if len(windows) != depth:
        raise ValueError(f"{depth} blocks in a group need as many windows, got {len(windows)}")
    scale = scale_of_tail(shapes["upsample.0.weight"][0])
    channels = shapes["conv_first.weight"][0]
    hidden = shapes[f"{block}.mlp.fc1.weight"][0]
    groups = count_numbered(shapes, "layers.{}.", first=0)
    if spatial:
        heads = shapes[f"{block}.correlation.pos.pos3.2.weight"][0]
        module = hit_srf(channels=channels, hidden=hidden, heads=heads, groups=groups, windows=windows, scale=scale)
    else:
        module = bvi_srf(channels=channels, hidden=hidden, groups=groups, windows=windows, scale=scale)
    return Architecture(module, scale, "deploy")
