"""Blocks of the modulation networks: what a pixel is multiplied by is computed from the image around it.

Every feature map is (N, C, H, W), float.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import Normalise, in_turn, numbered, shuffle_tail
from espan_deploy.networks.grids import adaptive_max_pool, resize_nearest, windows

Stretches = tuple[Tensor, int]
"""Windows along one axis: where each begins, and how long all are."""

SMALLEST_NORM = 1e-12
"""What PyTorch's ``normalize`` divides by at least."""


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a weight and a bias per channel."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normalised = centred / (centred.square().mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight.view(1, -1, 1, 1) * normalised + self.bias.view(1, -1, 1, 1)


class GatedFFN(nn.Module):
    """Restormer's gated feed-forward (Zamir et al., CVPR 2022): half of the depthwise features, through GELU, gates
    the other half. No biases."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = depthwise(2 * hidden, 3, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, features = self.dwconv(self.project_in(x)).chunk(2, 1)
        out: Tensor = self.project_out(F.gelu(gate) * features)
        return out


class SpatialModulation(nn.Module):
    """A pooled image of H // 8 by W // 8 and the variance of the whole one make what half the channels are
    multiplied by. No biases.

    learnt_mix: whether ``alpha`` and ``belt`` weigh the two.
    """

    divisor = 8

    def __init__(self, channels: int, *, learnt_mix: bool = False) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(channels, half, 1, bias=False)
        self.dwconv = depthwise(half, 3, bias=False)
        self.conv2 = nn.Conv2d(half, half, 1, bias=False)
        self.conv3 = nn.Conv2d(half, channels, 1, bias=False)
        self.learnt_mix = learnt_mix
        if learnt_mix:
            self.alpha = nn.Parameter(torch.ones(1, half, 1, 1))
            self.belt = nn.Parameter(torch.zeros(1, half, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv1(normalise(x))
        pooled, variance = self.dwconv(adaptive_max_pool(features, self.divisor)), variance_over_image(features)
        if self.learnt_mix:
            pooled, variance = self.alpha * pooled, self.belt * variance
        factor = resize_nearest(F.gelu(self.conv2(pooled + variance)), *x.shape[2:])
        out: Tensor = self.conv3(features * factor) + x
        return out


class JoinedBlocks(nn.Module):
    """DAN's and VSCINet's outline: blocks in a chain whose outputs are joined, the first features added, pixel shuffle.

    Keys: ``to_feat``, ``B1..``, ``fuse``, ``to_img``. block: makes one, of its width. fuse_end: what ends the joint.
    """

    def __init__(
        self, block: Callable[[int], nn.Module], fuse_end: nn.Module, *, channels: int, blocks: int, scale: int
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.normalise = Normalise(1.0)
        self.to_feat = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for i in range(blocks):
            self.add_module(f"B{i + 1}", block(channels))
        self.fuse = nn.Sequential(nn.Conv2d(blocks * channels, channels, 1, bias=False), nn.GELU(), fuse_end)
        self.to_img = upsampler(channels, scale, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.to_feat(self.normalise(x))
        outputs = self.weighed(in_turn(numbered(self, "B{}", self.blocks), shallow))
        return self.refined(self.to_img(self.fuse(torch.cat(outputs, 1)) + shallow)) + self.normalise.mean

    def weighed(self, outputs: list[Tensor]) -> list[Tensor]:
        """The blocks' outputs as they are joined."""
        return outputs

    def refined(self, image: Tensor) -> Tensor:
        """The enlarged image, before the mean colour is added."""
        return image


def row_kernels(width: int, parts: int, *, bias: bool = True) -> list[nn.Module]:
    """Depthwise convolutions of a 3x3, a 5x3 and a 3x5 kernel, and, for four parts, of two 3x3 in a chain."""
    kernels: list[nn.Module] = [depthwise(width, kernel, bias=bias) for kernel in ((3, 3), (5, 3), (3, 5))]
    if parts == 4:
        kernels.append(nn.Sequential(depthwise(width, 3, bias=bias), depthwise(width, 3, bias=bias)))
    return kernels


def normalise(x: Tensor, axis: int = 1) -> Tensor:
    """Each vector along an axis over its Euclidean length: by default, the channels of a pixel."""
    return F.normalize(x, dim=axis, eps=SMALLEST_NORM)


def variance_over_image(x: Tensor) -> Tensor:
    """The unbiased variance of each channel over the whole image, (N, C, 1, 1).

    The mean of the squares comes before the factor n / (n - 1): the sum itself would not fit FP16.
    """
    pixels = x.shape[2] * x.shape[3]
    centred = x - x.mean((2, 3), keepdim=True)
    return centred.square().mean((2, 3), keepdim=True) * (pixels / (pixels - 1))


def variance_in_windows(x: Tensor, rows: Stretches, columns: Stretches) -> Tensor:
    """The unbiased variance in each window of a grid of them, (N, C, rows, columns).

    One axis after the other: the variance of a window is the mean of its columns' plus that of their means.
    """
    (row_starts, height), (column_starts, width) = rows, columns
    mean, variance = _moments(windows(x, 2, row_starts, height), 3)
    inner = windows(variance, 3, column_starts, width).mean(4)
    outer = _moments(windows(mean, 3, column_starts, width), 4)[1]
    pixels = height * width
    return (inner + outer) * (pixels / (pixels - 1))


def _moments(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance along an axis, which goes."""
    mean = x.mean(axis, keepdim=True)
    return mean.squeeze(axis), (x - mean).square().mean(axis)


def depthwise(channels: int, kernel_size: int | tuple[int, int], *, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """A "same" convolution of each channel by itself, its kernel of odd sizes."""
    height, width = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
    padding = (dilation * (height // 2), dilation * (width // 2))
    return nn.Conv2d(
        channels, channels, (height, width), padding=padding, dilation=dilation, groups=channels, bias=bias
    )


def upsampler(channels: int, scale: int, *, kernel_size: int = 3, bias: bool = True) -> nn.Sequential:
    """A convolution and the pixel shuffle behind it, the convolution under ``0``."""
    return shuffle_tail(nn.Conv2d(channels, 3 * scale**2, kernel_size, padding=kernel_size // 2, bias=bias), scale)
