"""Channel attention in local windows: how DAN, ZenoSR, VSCINet and HannahSR attend to images of any size.

The windows are those of Chu et al., "Improving Image Restoration by Revisiting Global Information Aggregation" (TLC,
ECCV 2022): as few as cover the image, all of one size, evenly spaced, the last moved inwards to end with the image.
Where they overlap the results are averaged. Up to 12,000 pixels no more than two cover a pixel along either axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espan_deploy.networks.grids import windows
from espan_deploy.networks.safmn.blocks import ChannelNorm, GatedFFN, depthwise, normalise

EPSILON = 1e-5

_smaller: Callable[[int, int], int] = torch.sym_min
_larger: Callable[[int, int], int] = torch.sym_max
"""Of sizes that are open while the network is exported: Python's own would decide there and then."""


@dataclass(frozen=True)
class Cover:
    """The windows along one axis of an image: how many, how long, and the step from one to the next."""

    size: int
    count: int
    length: int
    step: int
    device: torch.device

    def starts(self) -> Tensor:
        """Where each window begins."""
        return self.inside(torch.arange(self.count, device=self.device))

    def inside(self, number: Tensor) -> Tensor:
        """Where the windows of these numbers begin."""
        return (number * self.step).clamp(max=self.size - self.length)

    def places(self) -> tuple[Tensor, Tensor]:
        """For each pixel, where it stands in the windows laid end to end: in the first that holds it, in the last."""
        pixel = torch.arange(self.size, device=self.device)
        first = ((pixel - self.length).clamp(min=-1) + self.step) // self.step
        last = torch.where(pixel < self.size - self.length, pixel // self.step, self.count - 1)
        at_first, at_last = (number * self.length + pixel - self.inside(number) for number in (first, last))
        return at_first, at_last


def cover(size: int, side: int, device: torch.device) -> Cover:
    """The windows of ``side`` pixels that cover an axis of this size; one of the axis's own size, where it is less."""
    length = _smaller(size, side)
    count = (size - 1) // length + 1
    gaps = _larger(count - 1, 1)
    return Cover(size, count, length, _larger((size - length + gaps - 1) // gaps, 1), device)


def in_local_windows(x: Tensor, side: int, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``attend`` makes of each local window, (N, C, H, W) again, the mean where windows overlap.

    attend: takes and gives (windows, channels, pixels of a window); the channels may change.
    """
    batch, channels, height, width = x.shape
    rows, columns = (cover(size, side, x.device) for size in (height, width))
    split = windows(windows(x, 3, columns.starts(), columns.length), 2, rows.starts(), rows.length)
    # One batch of windows: at sizes of one window, separate axes would be taken for axes to broadcast, for good.
    count = batch * rows.count * columns.count
    out = attend(split.permute(0, 2, 4, 1, 3, 5).reshape(count, channels, rows.length * columns.length))
    out = out.reshape(batch, rows.count, columns.count, out.shape[1], rows.length, columns.length)
    out = out.permute(0, 3, 1, 4, 2, 5)
    out = out.reshape(batch, out.shape[1], rows.count * rows.length, columns.count * columns.length)
    for axis, axis_cover in ((2, rows), (3, columns)):
        first, last = (out.index_select(axis, places) for places in axis_cover.places())
        out = (first + last) / 2
    return out


class GatedSelfAttention(nn.Module):
    """Channel attention whose query and value are products of a depthwise and a pointwise projection, and whose key is
    the value. No biases."""

    side = 72

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, 1))
        self.project_in = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.dwconv = depthwise(2 * channels, 3, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, factor = self.project_in(x).chunk(2, 1)
        out: Tensor = self.project_out(in_local_windows(self.dwconv(gate) * factor, self.side, self.attend))
        return out

    def attend(self, query_and_value: Tensor) -> Tensor:
        """(windows, 2 * channels, pixels) -> (windows, channels, pixels)."""
        query, value = query_and_value.chunk(2, 1)
        weights = similarity(query, value) * self.temperature
        return weights.softmax(-1) @ value


class BodyNorm(nn.Module):
    """A :class:`ChannelNorm` under ``body``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = ChannelNorm(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


class ChannelAttention(nn.Module):
    """The attention and a gated feed-forward, each normalised before and with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = BodyNorm(channels)
        self.norm2 = BodyNorm(channels)
        self.global_channel = GatedSelfAttention(channels)
        self.ffn = GatedFFN(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.global_channel(self.norm1(x)) + x
        out: Tensor = self.ffn(self.norm2(x)) + x
        return out


def similarity(query: Tensor, key: Tensor) -> Tensor:
    """The cosine of each channel of one with each of the other, over the pixels: (..., channels, channels)."""
    return normalise(query, -1) @ normalise(key, -1).transpose(-2, -1)
