"""SFNet: NTIRE 2025 efficient SR, team NJUPCA: SPAN with a learnt filter of the spectrum beside each block.

Training form: SPAN's, each convolution a :class:`~espan_deploy.networks.blocks.Conv3XC`, with the original's keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import (
    SPAB,
    Conv,
    EvalConv,
    Normalise,
    conv_form,
    same_conv,
    shuffle_tail,
    stale_keys,
)
from espan_deploy.networks.entry import Architecture, Shapes, conv_shape, count_numbered, scale_of_tail
from espan_deploy.networks.fourier.blocks import irfft2, rfft2


class FKM(nn.Module):
    """Frequency kernels: the spectrum filtered by bands, then a mixture of 1x1 convolutions chosen per frequency.

    The bands are discs around the middle of the half spectrum, an eighth and a quarter of the image's smaller side
    wide: there stand the highest horizontal frequencies and the middle vertical ones, as published.
    """

    def __init__(self, channels: int, experts: int) -> None:
        super().__init__()
        parts = 2 * channels  # real and imaginary, side by side
        self.parts, self.experts = parts, experts
        self.bn = nn.BatchNorm2d(parts)
        self.fdc = nn.Conv2d(parts, parts * experts, 1, groups=experts)
        self.weight = nn.Sequential(nn.Conv2d(parts, experts, 1), nn.Softmax(dim=1))
        self.fpe = nn.Conv2d(parts, parts, 3, padding=1, groups=parts)
        self.conv_low = nn.Conv2d(parts, parts, 1, groups=parts)
        self.conv_mid = nn.Conv2d(parts, parts, 1, groups=parts)
        self.conv_high = nn.Conv2d(parts, parts, 1, groups=parts)
        self.alpha = nn.Parameter(torch.zeros(parts, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        spectrum = torch.stack(rfft2(x), 2).flatten(1, 2)
        low, mid = discs(height, width, x)
        bands = self.conv_low(spectrum * low) + self.conv_mid(spectrum * mid)
        bands = bands + self.conv_high(spectrum * (1 - low - mid))
        filtered = self.bn(bands * self.alpha + spectrum)
        share = self.weight(filtered)
        mixed = self.fdc(self.fpe(filtered))
        out = mixed[:, : self.parts] * share[:, :1]
        for i in range(1, self.experts):
            out = out + mixed[:, i * self.parts : (i + 1) * self.parts] * share[:, i : i + 1]
        pairs = F.gelu(out).reshape(x.shape[0], -1, 2, height, width // 2 + 1)
        return irfft2((pairs[:, :, 0], pairs[:, :, 1]), height, width)


def discs(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """1 inside the inner disc and 1 in the ring around it, over the half spectrum: (height, width // 2 + 1)."""
    down = torch.arange(height, device=like.device) - height // 2
    right = torch.arange(width // 2 + 1, device=like.device) - width // 2
    distance = (down * down).unsqueeze(1) + right * right
    smaller = min(height, width)
    inner, outer = smaller // 8, smaller // 4
    low = (distance <= inner * inner).to(like.dtype)
    return low, (distance <= outer * outer).to(like.dtype) - low


class SFNet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    experts: 1x1 convolutions to mix. img_range: the factor after the mean is subtracted; shapes do not tell it.
    """

    def __init__(
        self,
        *,
        channels: int = 48,
        blocks: int = 6,
        experts: int = 4,
        scale: int = 4,
        img_range: float = 255.0,
        conv: Conv = EvalConv,
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.normalise = Normalise(img_range)
        self.conv_1 = conv(3, channels)
        for i in range(1, blocks + 1):
            self.add_module(f"block_{i}", SPAB(conv, channels))
            self.add_module(f"freblock_{i}", FKM(channels, experts))
        self.conv_cat = same_conv(4 * channels, channels, 1)
        self.conv_2 = conv(channels, channels)
        self.upsampler = shuffle_tail(same_conv(channels, 3 * scale**2), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(self.normalise(x))
        out, outputs, inner = shallow, [], shallow
        for i in range(1, self.blocks + 1):
            block = self.get_submodule(f"block_{i}")
            assert isinstance(block, SPAB)
            attended, inner = block.with_first(out)
            out = attended + self.get_submodule(f"freblock_{i}")(out)
            outputs.append(out)
        fused = self.conv_cat(torch.cat([shallow, self.conv_2(out), outputs[0], inner], 1))
        upscaled: Tensor = self.upsampler(fused)
        return upscaled


def build(shapes: Shapes, *, img_range: float = 255.0) -> Architecture:
    """An SFNet of the widths, depth, scale and form that the shapes tell. img_range: as trained with."""
    conv, form = conv_form(shapes, "conv_1")
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = SFNet(
        channels=conv_shape(shapes, "conv_1")[0],
        blocks=count_numbered(shapes, "block_{}."),
        experts=shapes["freblock_1.weight.0.weight"][0],
        scale=scale,
        img_range=img_range,
        conv=conv,
    )
    return Architecture(module, scale, form, redundant=stale_keys(shapes))


def reference() -> SFNet:
    """NJUPCA's, 2025."""
    return SFNet()
