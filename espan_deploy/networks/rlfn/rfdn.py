"""RFDN-SPAN: NTIRE 2026 efficient SR, team IN2GM: RFDN with SPAN's attention in place of ESA.

RFDN: Liu et al., "Residual Feature Distillation Network for Lightweight Image Super-Resolution", ECCV workshops 2020.
There is one form: nothing in it is re-parameterised.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import same_conv, shuffle_tail, symmetric_attention
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.rlfn.blocks import RFDB, JoinedChain

NEGATIVE_SLOPE = 0.05


class SymmetricRFDB(RFDB):
    """Plain 3x3 convolutions and SPAN's attention."""

    def __init__(self, channels: int, distilled: int) -> None:
        super().__init__(
            channels,
            distilled,
            conv=lambda _stage, width: same_conv(width, width),
            last=same_conv(channels, distilled),
            activation=partial(F.leaky_relu, negative_slope=NEGATIVE_SLOPE),
        )

    def forward(self, x: Tensor) -> Tensor:
        return symmetric_attention(self.joined(x), x)


class RFDNSPAN(JoinedChain):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 46, distilled: int = 23, blocks: int = 4, scale: int = 4) -> None:
        super().__init__(
            same_conv(3, channels),
            [SymmetricRFDB(channels, distilled) for _ in range(blocks)],
            nn.Sequential(nn.Conv2d(blocks * channels, channels, 1), nn.LeakyReLU(NEGATIVE_SLOPE)),
            same_conv(channels, channels),
            shuffle_tail(same_conv(channels, 3 * scale**2), scale),
        )


def build(shapes: Shapes) -> Architecture:
    """An RFDN-SPAN of the widths, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    distilled, channels = shapes["B1.c1_d.weight"][:2]
    blocks = count_numbered(shapes, "B{}.")
    return Architecture(RFDNSPAN(channels=channels, distilled=distilled, blocks=blocks, scale=scale), scale, "deploy")


def reference() -> RFDNSPAN:
    """IN2GM's, 2026."""
    return RFDNSPAN()
