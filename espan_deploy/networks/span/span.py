"""SPAN: Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution", CVPR workshops 2024.

Winner of NTIRE 2024 efficient SR (48 channels), baseline of 2026 (28). Entries of 2025: LVGroup_HFUT (48 channels,
trained with ``img_range=1``), Davinci and SRCB (28, the tail pruned to 20; their checkpoints are the same).
ESRNet (team Rochester) adds one convolution beside ``conv_2``, all but switched off.

Training form: each convolution a :class:`~espan_deploy.networks.blocks.Conv3XC`, with the original's keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import (
    SPAB,
    Conv,
    EvalConv,
    Normalise,
    conv_form,
    shuffle_tail,
    stale_keys,
)
from espan_deploy.networks.entry import Architecture, Shapes, conv_shape, count_numbered, scale_of_tail

SIDE_SCALE = 1e-5
"""The fixed factor of ESRNet's extra convolution."""


class SideConv(nn.Module):
    """ESRNet's seventh "block": one convolution."""

    def __init__(self, conv: Conv, channels: int) -> None:
        super().__init__()
        self.c1_r = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c1_r(x)
        return out


class SPAN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    tail_channels: what ``conv_cat`` leaves for the upsampler; pruned below ``channels`` by some.
    img_range: the factor after the mean is subtracted; shapes do not tell it, and 255 is all but universal.
    normalise: False for networks that take values as they are; their checkpoints say so with a key ``no_norm``.
    side_conv: ESRNet's extra convolution, as the block behind the last one.
    """

    def __init__(
        self,
        *,
        channels: int = 48,
        tail_channels: int | None = None,
        blocks: int = 6,
        scale: int = 4,
        img_range: float = 255.0,
        normalise: bool = True,
        side_conv: bool = False,
        conv: Conv = EvalConv,
    ) -> None:
        super().__init__()
        tail_channels = tail_channels or channels
        self.blocks = blocks
        self.side = f"block_{blocks + 1}" if side_conv else None
        self.normalise = Normalise(img_range) if normalise else nn.Identity()
        if not normalise:
            self.register_buffer("no_norm", torch.zeros(1))
        self.conv_1 = conv(3, channels)
        for i in range(blocks):
            self.add_module(f"block_{i + 1}", SPAB(conv, channels))
        if self.side:
            self.add_module(self.side, SideConv(conv, channels))
        self.conv_cat = nn.Conv2d(4 * channels, tail_channels, 1)
        self.conv_2 = conv(channels, channels)
        self.upsampler = shuffle_tail(nn.Conv2d(tail_channels, 3 * scale**2, 3, padding=1), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(self.normalise(x))
        out = shallow
        outputs, inner = [], shallow
        for i in range(1, self.blocks + 1):
            block = self.get_submodule(f"block_{i}")
            assert isinstance(block, SPAB)
            out, inner = block.with_first(out)
            outputs.append(out)
        deep = self.conv_2(out)
        if self.side:
            deep = deep + self.get_submodule(self.side)(out) * SIDE_SCALE
        upscaled: Tensor = self.upsampler(self.conv_cat(torch.cat([shallow, deep, outputs[0], inner], 1)))
        return upscaled


def build(shapes: Shapes, *, img_range: float = 255.0) -> Architecture:
    """A SPAN or ESRNet of the widths, depth, scale and form that the shapes tell.

    img_range: 255, unless the network was trained with another (LVGroup_HFUT's: 1).
    """
    conv, form = conv_form(shapes, "conv_1")
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    blocks = count_numbered(shapes, "block_{}.")
    side_conv = not any(key.startswith(f"block_{blocks}.c2_r.") for key in shapes)
    module = SPAN(
        channels=conv_shape(shapes, "conv_1")[0],
        tail_channels=shapes["conv_cat.weight"][0],
        blocks=blocks - side_conv,
        scale=scale,
        img_range=img_range,
        normalise="no_norm" not in shapes,
        side_conv=side_conv,
        conv=conv,
    )
    return Architecture(module, scale, form, redundant=stale_keys(shapes))


def reference() -> SPAN:
    """The baseline of 2026."""
    return SPAN(channels=28)


def pruned() -> SPAN:
    """Davinci's and SRCB's, 2025."""
    return SPAN(channels=28, tail_channels=20)


def esrnet() -> SPAN:
    """Rochester's, 2025."""
    return SPAN(channels=28, side_conv=True)
