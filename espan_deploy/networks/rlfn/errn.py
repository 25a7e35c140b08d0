"""ERRN2: NTIRE 2026 efficient SR, team Just Try ("Enhanced Reparameterize Residual Network").

Six blocks of four 3x3 convolutions with leaky ReLU and SPAN's attention, and one long residual.

There is one form: the convolutions were trained with more branches, but their code and keys are not published.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import shuffle_tail, symmetric_attention
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail

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


class ERRN2(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 32, blocks: int = 6, depth: int = 4, scale: int = 4) -> None:
        super().__init__()
        self.blocks = blocks
        self.conv_1 = nn.Conv2d(3, channels, 3, padding=1)
        for i in range(blocks):
            self.add_module(f"block_{i + 1}", RepB(channels, depth))
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = shuffle_tail(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(x)
        out = shallow
        for i in range(1, self.blocks + 1):
            out = self.get_submodule(f"block_{i}")(out)
        upscaled: Tensor = self.upsampler(self.conv_2(out) + shallow)
        return upscaled


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
