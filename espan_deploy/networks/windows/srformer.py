"""ParticalSRFormer3 (NTIRE 2025, team X-L): SRFormer's permuted window attention on a quarter of the channels.

SRFormer: Zhou et al., "SRFormer: Permuted Self-Attention for Single Image Super-Resolution", ICCV 2023. Keys and values
have a quarter of the channels, and four pixels' together stand for one key: windows of 16 attend at the cost of 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import Normalise, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.swinir import ChannelLinear, ChannelNorm, ConvFFN, ResidualGroup
from espan_deploy.networks.windows.blocks import (
    ShiftMask,
    halves,
    heads_of,
    map_of_heads,
    mirrored,
    position_index,
    rolled,
)

KEPT = 4
"""The parts of equal width that the features have, of which the first is attended to and three are kept."""


class PermutedAttention(nn.Module):
    """Attention in windows, shifted or not; 2x2 pixels of keys and values are one, with all their channels."""

    index: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.kv = ChannelLinear(channels, channels // 2)
        self.q = ChannelLinear(channels, channels)
        self.proj = ChannelLinear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((window - 1) ** 2, heads))
        self.register_buffer("index", position_index(window, window // 2), persistent=False)
        self.mask = ShiftMask(shift, window, window // 2) if shift else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = rolled(x, self.shift)
        query = heads_of(self.q(x), self.heads, self.window)
        key, value = (self._permuted(part) for part in halves(self.kv(x)))
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + bias
        attended = map_of_heads(self.mask(scores).softmax(-1) @ value, self.window)
        projected: Tensor = self.proj(rolled(attended, -self.shift))
        return projected

    def _permuted(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        cells = x.reshape(-1, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return heads_of(cells.flatten(1, 3), self.heads, self.window // 2)


class Block(nn.Module):
    """Attention and feed-forward part, each of normalised features."""

    def __init__(self, channels: int, hidden: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.attn = PermutedAttention(channels, heads, window, shift)
        self.norm2 = ChannelNorm(channels)
        self.mlp = ConvFFN(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PartialSRFormer(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    depths: blocks of each group; every other one is shifted by half a window.
    """

    def __init__(
        self,
        *,
        channels: int = 48,
        hidden: int = 96,
        heads: int = 6,
        depths: Sequence[int] = (6, 6, 6, 6),
        window: int = 16,
        scale: int = 4,
    ) -> None:
        super().__init__()
        self.channels, self.groups, self.window, self.scale = channels, len(depths), window, scale
        self.normalise = Normalise(1.0)
        self.conv_first = nn.Conv2d(3, KEPT * channels, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": ChannelNorm(channels)})
        for i, depth in enumerate(depths):
            blocks = (Block(channels, hidden, heads, window, n % 2 * window // 2) for n in range(depth))
            body = nn.Sequential()
            body.add_module("blocks", nn.Sequential(*blocks))
            self.add_module(f"layers{i + 1}", ResidualGroup(body, channels))
        self.norm = ChannelNorm(channels)
        self.conv_after_body = nn.Conv2d(KEPT * channels, KEPT * channels, 3, padding=1)
        self.upsample = shuffle_tail(nn.Conv2d(KEPT * channels, 3 * scale**2, 3, padding=1), scale)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        shallow = self.conv_first(self.normalise(mirrored(x, self.window)))
        attended, kept = shallow[:, : self.channels], shallow[:, self.channels :]
        for i in range(self.groups):
            group = self.get_submodule(f"layers{i + 1}")
            attended = self.norm(group(self.patch_embed["norm"](attended)))
        deep = torch.cat([attended, kept], 1)
        upscaled: Tensor = self.upsample(self.conv_after_body(deep) + deep) + self.normalise.mean
        return upscaled[:, :, : self.scale * height, : self.scale * width]


def build(shapes: Shapes) -> Architecture:
    """A ParticalSRFormer3 of the widths, depths, windows and scale that the shapes tell."""
    block = "layers1.residual_group.blocks.0"
    offsets, heads = shapes[f"{block}.attn.relative_position_bias_table"]
    hidden, channels = shapes[f"{block}.mlp.fc1.weight"]
    groups = count_numbered(shapes, "layers{}.")
    scale = scale_of_tail(shapes["upsample.0.weight"][0])
    module = PartialSRFormer(
        channels=channels,
        hidden=hidden,
        heads=heads,
        depths=[
            count_numbered(shapes, f"layers{i + 1}.residual_group.blocks." + "{}.", first=0) for i in range(groups)
        ],
        window=round(offsets**0.5) + 1,
        scale=scale,
    )
    stored = frozenset(key for key in shapes if key.endswith((".attn_mask", ".aligned_relative_position_index")))
    return Architecture(module, scale, "deploy", redundant=stored)


def reference() -> PartialSRFormer:
    """X-L's, 2025."""
    return PartialSRFormer()
