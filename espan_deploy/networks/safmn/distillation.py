"""What FMDN and HannahSR share: RFDN's distillation block, its attention over space made of maxima and variances.

Four strided convolutions, two of them pooled by their largest value in windows of 5 and of 7 pixels and two by their
variance there, make what the features are multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import BSConv, ContrastAttention
from espan_deploy.networks.safmn.blocks import Stretches, depthwise, variance_in_windows

WINDOW_STEP = 3
"""From one pooling window to the next, in every branch."""


def mirrored_conv(in_channels: int, out_channels: int, *, stride: int = 1) -> BSConv:
    """A blueprint separable 3x3 whose border is the image mirrored."""
    return BSConv(in_channels, out_channels, stride=stride, mirrored=True)


class VarianceESA(nn.Module):
    """Spatial attention from maxima and variances of strided features, in windows of 5 and of 7.

    refine: makes the convolutions of the pooled images. activation: between two of them.
    """

    def __init__(
        self,
        channels: int,
        mid_channels: int,
        refine: Callable[[int], nn.Module],
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = nn.Conv2d(channels, mid_channels, 1)
        self.conv_f = nn.Conv2d(mid_channels, mid_channels, 1)
        for i in (1, 2, 3, 4):
            self.add_module(f"conv2_{i}", mirrored_conv(mid_channels, mid_channels, stride=2))
        for i in (1, 2):
            self.add_module(f"conv_max_{i}", refine(mid_channels))
            self.add_module(f"conv3_{i}", refine(mid_channels))
        self.conv4 = nn.Conv2d(mid_channels, channels, 1)

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, H, W), in [0, 1]."""
        squeezed = self.conv1(x)
        strided = [self.get_submodule(f"conv2_{i}")(squeezed) for i in (1, 2, 3, 4)]
        together = self.at_full_size(squeezed)
        for i, size, largest, varied in ((1, 5, strided[0], strided[3]), (2, 7, strided[1], strided[2])):
            pooled = F.max_pool2d(largest, size, stride=WINDOW_STEP, padding=1) + local_variance(varied, size)
            refined = self.get_submodule(f"conv3_{i}")(self.activation(self.get_submodule(f"conv_max_{i}")(pooled)))
            together = together + F.interpolate(refined, size=x.shape[2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.conv4(together))

    def at_full_size(self, squeezed: Tensor) -> Tensor:
        out: Tensor = self.conv_f(squeezed)
        return out


class ChannelReweighting(nn.Module):
    """Contrast attention beside the difference to a learnt common map, on features of a depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = depthwise(channels, 3)
        self.decompose = nn.Conv2d(channels, 1, 1)
        self.sigma = ElementScale(channels)
        self.cca = ContrastAttention(channels, channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        features = F.gelu(self.dwconv(x))
        out: Tensor = self.sigma(features - F.gelu(self.decompose(features))) + self.cca(features) + x
        return out


class ElementScale(nn.Module):
    """A learnt factor per channel, under ``scale``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@dataclass(frozen=True)
class Parts:
    """What a block is made of, each from its width.

    distil: a distillation step's convolution. end: the last step's, of both widths. spatial: the spatial attention,
    of both its widths. channel: the channel attention. mix: what ends the block.
    """

    distil: Callable[[int], nn.Module]
    end: Callable[[int, int], nn.Module]
    spatial: Callable[[int, int], nn.Module]
    channel: Callable[[int], nn.Module]
    mix: Callable[[int], nn.Module]


class Block(nn.Module):
    """Three distillation steps and a last one, joined by a 1x1; attention over space and over channels; the mix."""

    def __init__(self, channels: int, distilled: int, esa_channels: int, parts: Parts) -> None:
        super().__init__()
        for i in (1, 2, 3):
            self.add_module(f"c{i}_d", nn.Conv2d(channels, distilled, 1))
            self.add_module(f"c{i}_r", parts.distil(channels))
        self.c4 = parts.end(channels, distilled)
        self.c5 = nn.Conv2d(4 * distilled, channels, 1)
        self.esa = Body(parts.spatial(channels, esa_channels))
        self.cca = parts.channel(channels)
        self.ea = parts.mix(channels)

    def forward(self, x: Tensor) -> Tensor:
        out, kept = x, []
        for i in (1, 2, 3):
            kept.append(F.gelu(self.get_submodule(f"c{i}_d")(out)))
            out = F.gelu(self.get_submodule(f"c{i}_r")(out) + out)
        kept.append(F.gelu(self.c4(out)))
        mixed: Tensor = self.ea(self.cca(self.esa(self.c5(torch.cat(kept, 1))))) + x
        return mixed


class Body(nn.Module):
    """One module under ``body.0``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(module)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def local_variance(x: Tensor, size: int) -> Tensor:
    """The unbiased variance in windows of size x size, as far apart as pooling's, of the image mirrored by a pixel."""
    mirrored = F.pad(x, (1, 1, 1, 1), mode="reflect")
    rows, columns = (_pooling_windows(mirrored, axis, size) for axis in (2, 3))
    return variance_in_windows(mirrored, rows, columns)


def _pooling_windows(x: Tensor, axis: int, size: int) -> Stretches:
    count = (x.shape[axis] - size) // WINDOW_STEP + 1
    return torch.arange(count, device=x.device) * WINDOW_STEP, size
