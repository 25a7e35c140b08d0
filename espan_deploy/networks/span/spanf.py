"""SPANF: NTIRE 2025 efficient SR, team XiaomiMM: SPAN with five blocks of 32 channels and no head.

A 3x3 convolution per colour, initialised to repeat each pixel, takes the place of the head's features in the tail.
Two entries of 2026 prune the tail: PDS (team BOE AIoT, 20 channels) and PKDSR (24).

Training form: each block's convolution and ``conv_2`` a :class:`~espan_deploy.networks.blocks.Conv3XC`, as in SPAN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import SPAB, Conv, EvalConv, conv_form, stale_keys
from espan_deploy.networks.entry import Architecture, Shapes, conv_shape, count_numbered, scale_of_tail


class SPANF(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    tail_channels: what ``conv_cat`` leaves for ``conv_2``. tail_suffix: what PDS puts behind those two names.
    """

    def __init__(
        self,
        *,
        channels: int = 32,
        tail_channels: int | None = None,
        blocks: int = 5,
        scale: int = 4,
        tail_suffix: str = "",
        conv: Conv = EvalConv,
    ) -> None:
        super().__init__()
        tail_channels, subpixels = tail_channels or channels, 3 * scale**2
        self.blocks = blocks
        self.tail_suffix = tail_suffix
        self.conv_near = nn.Conv2d(3, subpixels, 3, padding=1, groups=3, bias=False)
        for i in range(blocks):
            self.add_module(f"block_{i + 1}", SPAB(conv, channels) if i else SPAB(conv, 3, channels, channels))
        self.add_module(f"conv_cat{tail_suffix}", nn.Conv2d(subpixels + 2 * channels, tail_channels, 1))
        self.add_module(f"conv_2{tail_suffix}", conv(tail_channels, subpixels))
        self.depth_to_space = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        first = out = self.get_submodule("block_1")(x)
        for i in range(2, self.blocks + 1):
            out = self.get_submodule(f"block_{i}")(out)
        fused = self.get_submodule(f"conv_cat{self.tail_suffix}")(torch.cat([self.conv_near(x), out, first], 1))
        upscaled: Tensor = self.depth_to_space(self.get_submodule(f"conv_2{self.tail_suffix}")(fused))
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A SPANF of the widths, depth, scale, tail and form that the shapes tell."""
    conv, form = conv_form(shapes, "block_1.c1_r")
    scale = scale_of_tail(shapes["conv_near.weight"][0])
    tail_suffix = "_1" if "conv_cat_1.weight" in shapes else ""
    module = SPANF(
        channels=conv_shape(shapes, "block_1.c1_r")[0],
        tail_channels=shapes[f"conv_cat{tail_suffix}.weight"][0],
        blocks=count_numbered(shapes, "block_{}."),
        scale=scale,
        tail_suffix=tail_suffix,
        conv=conv,
    )
    return Architecture(module, scale, form, redundant=stale_keys(shapes))


def reference() -> SPANF:
    """XiaomiMM's, 2025."""
    return SPANF()


def pds() -> SPANF:
    """BOE AIoT's, 2026."""
    return SPANF(tail_channels=20, tail_suffix="_1")


def pkdsr() -> SPANF:
    """PKDSR's, 2026."""
    return SPANF(tail_channels=24)
