"""TSR (NTIRE 2025, team ShannonLab), TSSR (2025, team TSSR) and DISP (2026, team DISP): one family.

Four residual blocks of four 3x3 convolutions with SiLU, no attention. TSR ends its body in a 3x3 convolution, TSSR
in a 1x1. DISP is TSSR's graph with other weights: keys and shapes are the same, so the two are one entry here.

There is one form: the teams trained re-parameterised convolutions, but published neither their code nor their keys.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import EvalConv, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail


class REECB(nn.Module):
    """``x + silu(c3(silu(extra(silu(c2(silu(c1(x))))))))``, the extra ones under ``_extern_conv_block``."""

    def __init__(self, channels: int, extra_convs: int) -> None:
        super().__init__()
        self._extern_conv_block = nn.ModuleList(EvalConv(channels, channels) for _ in range(extra_convs))
        self.c1_r = EvalConv(channels, channels)
        self.c2_r = EvalConv(channels, channels)
        self.c3_r = EvalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in (self.c1_r, self.c2_r, *self._extern_conv_block, self.c3_r):
            out = F.silu(conv(out))
        return out + x


class TSR(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    pointwise_end: the body ends in a 1x1 convolution (TSSR, DISP), not in a 3x3 (TSR).
    """

    def __init__(
        self,
        *,
        channels: int = 32,
        blocks: int = 4,
        extra_convs: int = 1,
        scale: int = 4,
        pointwise_end: bool = False,
    ) -> None:
        super().__init__()
        self.conv_1 = EvalConv(3, channels)
        self.blocks = nn.Sequential(*(REECB(channels, extra_convs) for _ in range(blocks)))
        self.conv_2 = nn.Conv2d(channels, channels, 1) if pointwise_end else EvalConv(channels, channels)
        self.upsampler = shuffle_tail(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(x)
        upscaled: Tensor = self.upsampler(self.conv_2(self.blocks(shallow)) + shallow)
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A TSR or TSSR of the widths, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = TSR(
        channels=shapes["conv_1.eval_conv.weight"][0],
        blocks=count_numbered(shapes, "blocks.{}.", first=0),
        extra_convs=count_numbered(shapes, "blocks.0._extern_conv_block.{}.", first=0),
        scale=scale,
        pointwise_end="conv_2.weight" in shapes,
    )
    return Architecture(module, scale, "deploy")


def reference() -> TSR:
    """ShannonLab's, 2025."""
    return TSR()


def tssr() -> TSR:
    """TSSR's, 2025, and DISP's, 2026."""
    return TSR(pointwise_end=True)
