"""ERRN2: NTIRE 2026 efficient SR, team Just Try ("Enhanced Reparameterize Residual Network").

Six blocks of four 3x3 convolutions with leaky ReLU and SPAN's attention, and one long residual.

There is one form: the convolutions were trained with more branches, but their code and keys are not published.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import same_conv, shuffle_tail, symmetric_attention
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.rlfn.blocks import ResidualChain

NEGATIVE_SLOPE = 0.1


class RB(nn.Module):
    """A 3x3 convolution under ``rep_conv``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rep_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rep_conv(x)
        return out


class RepB(nn.Module):
    """Convolutions ``rep1..`` with leaky ReLU between them, then the symmetric attention."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        for i in range(depth):
            self.add_module(f"rep{i + 1}", RB(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.get_submodule("rep1")(x)
        for i in range(2, self.depth + 1):
            out = self.get_submodule(f"rep{i}")(F.leaky_relu(out, NEGATIVE_SLOPE))
        return symmetric_attention(out, x)


class ERRN2(ResidualChain):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 32, blocks: int = 6, depth: int = 4, scale: int = 4) -> None:
        super().__init__(
            same_conv(3, channels),
            [RepB(channels, depth) for _ in range(blocks)],
            same_conv(channels, channels),
            shuffle_tail(same_conv(channels, 3 * scale**2), scale),
        )


def build(shapes: Shapes) -> Architecture:
    """An ERRN2 of the widths, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = ERRN2(
        channels=shapes["conv_1.weight"][0],
        blocks=count_numbered(shapes, "block_{}."),
        depth=count_numbered(shapes, "block_1.rep{}."),
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> ERRN2:
    """Just Try's, 2026."""
    return ERRN2()
