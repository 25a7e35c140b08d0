"""DIPNet-slim (NTIRE 2025, team ASR) and IESRNet (2025, team IESR): DIPNet without pruning, slimmed for speed.

DIPNet: Yu et al., "DIPNet: Efficiency Distillation and Iterative Pruning", CVPR workshops 2023. Both have four
blocks of 32 channels with enhanced spatial attention, SiLU, and no biases outside the attention. IESRNet takes the
residual and one convolution out of the two middle blocks.

Training form: the 3x3 convolutions are :class:`~espan_deploy.networks.blocks.Conv3XC`, as what is left of it in the
entrants' code names them.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import (
    ESA,
    ESA_MIN_SIZE,
    Conv,
    EvalConv,
    conv_form,
    shuffle_tail,
    stale_keys,
)
from espan_deploy.networks.entry import Architecture, Shapes, conv_shape, count_numbered, scale_of_tail

RESIDUAL, SHORT = ("c1_r", "c2_r", "c3_r"), ("c1_r", "c3_r")
"""The convolutions of a block with its residual, and of one without."""


class RRFB(nn.Module):
    """Convolutions with SiLU, the residual where there are three of them, a 1x1, then the attention."""

    def __init__(self, conv: Conv, channels: int, mid_channels: int, names: tuple[str, ...], esa: ESA) -> None:
        super().__init__()
        self.names = names
        widths = [channels] + [mid_channels] * (len(names) - 1) + [channels]
        for name, in_channels, out_channels in zip(names, widths, widths[1:], strict=False):
            self.add_module(name, conv(in_channels, out_channels))
        self.c5 = nn.Conv2d(channels, channels, 1, bias=False)
        self.esa = esa

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for name in self.names:
            out = F.silu(self.get_submodule(name)(out))
        attended: Tensor = self.esa(self.c5(out + x if self.names == RESIDUAL else out))
        return attended


class DIPNet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), not clipped.

    blocks: the convolutions of each block. conv: of the body, biases off. esa_conv: of the attention's 3x3,
    None for a plain one. skip_conv: a 1x1 in the attention. end_kernel: of the convolution that ends the body.
    """

    def __init__(
        self,
        *,
        blocks: tuple[tuple[str, ...], ...] = (RESIDUAL,) * 4,
        channels: int = 32,
        mid_channels: int = 32,
        esa_channels: int = 16,
        scale: int = 4,
        conv: Conv = EvalConv,
        esa_conv: Conv | None = EvalConv,
        skip_conv: bool = True,
        end_kernel: int = 1,
    ) -> None:
        super().__init__()
        body = partial(conv, bias=False)
        self.blocks = len(blocks)
        self.conv_1 = body(3, channels)
        for i, names in enumerate(blocks):
            plain = nn.Conv2d(esa_channels, esa_channels, 3, padding=1)
            conv3 = esa_conv(esa_channels, esa_channels) if esa_conv else plain
            esa = ESA(channels, esa_channels, conv3, skip_conv=skip_conv)
            self.add_module(f"block_{i + 1}", RRFB(body, channels, mid_channels, names, esa))
        pointwise_end = end_kernel == 1
        self.conv_2 = nn.Conv2d(channels, channels, 1, bias=False) if pointwise_end else body(channels, channels)
        self.upsampler = shuffle_tail(body(channels, 3 * scale**2), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(x)
        out = shallow
        for i in range(1, self.blocks + 1):
            out = self.get_submodule(f"block_{i}")(out)
        upscaled: Tensor = self.upsampler(self.conv_2(out) + shallow)
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A DIPNet-slim or IESRNet of the widths, depth, scale and form that the shapes tell."""
    conv, form = conv_form(shapes, "conv_1")
    scale = scale_of_tail(conv_shape(shapes, "upsampler.0")[0])
    names = [
        RESIDUAL if any(key.startswith(f"block_{i + 1}.c2_r.") for key in shapes) else SHORT
        for i in range(count_numbered(shapes, "block_{}."))
    ]
    module = DIPNet(
        blocks=tuple(names),
        channels=conv_shape(shapes, "conv_1")[0],
        mid_channels=conv_shape(shapes, "block_1.c1_r")[0],
        esa_channels=shapes["block_1.esa.conv1.weight"][0],
        scale=scale,
        conv=conv,
        esa_conv=None if "block_1.esa.conv3.weight" in shapes else conv_form(shapes, "block_1.esa.conv3")[0],
        skip_conv="block_1.esa.conv_f.weight" in shapes,
        end_kernel=conv_shape(shapes, "conv_2")[2],
    )
    return Architecture(module, scale, form, min_size=ESA_MIN_SIZE, redundant=stale_keys(shapes))


def reference() -> DIPNet:
    """ASR's DIPNet_slim_v2, 2025."""
    return DIPNet()


def iesrnet() -> DIPNet:
    """IESR's, 2025."""
    return DIPNet(blocks=(RESIDUAL, SHORT, SHORT, RESIDUAL), esa_conv=None, skip_conv=False, end_kernel=3)
