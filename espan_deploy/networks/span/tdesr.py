"""TDESR: NTIRE 2025 efficient SR, team LZ ("Tensor Decomposed Efficient Super-Resolution").

Five of SPAN's blocks, each 3x3 convolution written as a 3x1 to half the channels and a 1x3, and one long residual.
There is one form: nothing in it is re-parameterised.
"""

from __future__ import annotations

from torch import Tensor, nn

from espan_deploy.networks.blocks import SPAB, same_conv, separable_conv, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail


def _low_rank(in_channels: int, out_channels: int) -> nn.Sequential:
    assert in_channels == out_channels, "TDESR's blocks keep their width"
    return separable_conv(in_channels, in_channels // 2, bias=True)


class TDESR(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 64, blocks: int = 5, scale: int = 4) -> None:
        super().__init__()
        self.head = same_conv(3, channels)
        self.body = nn.Sequential(*(SPAB(_low_rank, channels, conv_name="td_{}") for _ in range(blocks)))
        self.fuse = same_conv(channels, channels)
        self.tail = shuffle_tail(same_conv(channels, 3 * scale**2), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        upscaled: Tensor = self.tail(self.fuse(self.body(shallow)) + shallow)
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A TDESR of the width, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["tail.0.weight"][0])
    blocks = count_numbered(shapes, "body.{}.", first=0)
    return Architecture(TDESR(channels=shapes["head.weight"][0], blocks=blocks, scale=scale), scale, "deploy")


def reference() -> TDESR:
    """LZ's, 2025."""
    return TDESR()
