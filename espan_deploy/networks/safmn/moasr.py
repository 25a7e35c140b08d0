"""MoASR: NTIRE 2025 efficient SR, team AiMF_SR ("Mixture of Attention").

Each block chooses, for each image by itself, one of three experts of 2, 4 and 8 channels. The entrants' code does so
for one image at a time. Here all three run, and the weights of those not chosen are zero: the same values for any
number of images, and a graph without a branch, for the multiply-adds of the two that are thrown away.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import Normalise
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.grids import adaptive_avg_pool, adaptive_max_pool, resize_nearest
from espan_deploy.networks.safmn.blocks import ChannelNorm, depthwise, upsampler

EPSILON = 1e-6
DIVISOR = 8
"""The coarse grid is the image's size over this."""


class DeepFeature(nn.Module):
    """Two feature maps: one modulated by its coarse means and maxima, one from a depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(channels, 2 * channels, 1)
        self.dw_conv1 = depthwise(channels, 3)
        self.dw_conv2 = depthwise(channels, 3)
        self.dwconv3 = depthwise(channels, 3)
        self.pwconv = nn.Conv2d(channels, channels, 1)
        self.pwconv_xa = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.proj1(x).chunk(2, 1)
        coarse = self.dw_conv1(adaptive_avg_pool(a, DIVISOR)) + self.dw_conv2(adaptive_max_pool(a, DIVISOR))
        factor = resize_nearest(F.gelu(self.pwconv_xa(coarse)), *x.shape[2:])
        return a * factor, F.gelu(self.pwconv(self.dwconv3(b)))


class Expert(nn.Module):
    """The weights of one expert: two 1x1 to few channels, multiplied with each other, and a 1x1 back."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Conv2d(channels, width, 1)
        self.linear2 = nn.Conv2d(channels, width, 1)
        self.linear_final = nn.Conv2d(width, channels, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.linear_final(self.linear1(a) * self.linear2(b))
        return out


class Router(nn.Module):
    """What each expert weighs for each image: a softmax over a linear layer of the mean features, (N, experts)."""

    def __init__(self, channels: int, experts: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, experts, bias=False), nn.Softmax(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


class MixtureOfExperts(nn.Module):
    """The input plus what the one expert that weighs most makes of it, times its weight."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert(channels, width) for width in widths)
        self.gate = Router(channels, len(widths))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        weights = self.gate(a)
        chosen = torch.arange(len(self.experts), device=a.device) == weights.argmax(1, keepdim=True)
        weights = (weights * chosen)[:, :, None, None]
        out = a
        for i, expert in enumerate(self.experts):
            out = out + expert(a, b) * weights[:, i : i + 1]
        return out


class MoEBlock(nn.Module):
    """The two feature maps, the expert that joins them, and 1x1 convolutions around it."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.deep_feature = DeepFeature(channels)
        self.moe = MixtureOfExperts(channels, widths)
        self.proj_xa = nn.Conv2d(channels, channels, 1)
        self.proj_xb = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.deep_feature(x)
        out: Tensor = self.proj_out(self.moe(self.proj_xa(a), self.proj_xb(b)))
        return out


class DepthFFN(nn.Module):
    """A feed-forward where half of the features, through a separable depthwise kernel, gate the other half."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(depthwise(channels, (kernel_size, 1)), depthwise(channels, (1, kernel_size)))
        self.proj1 = nn.Conv2d(channels, 2 * channels, 1)
        self.proj2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, features = F.gelu(self.proj1(x)).chunk(2, 1)
        out: Tensor = self.proj2(features * F.gelu(self.conv(gate)))
        return out


class SpatialFocus(nn.Module):
    """The experts, normalised before and with a residual."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels, EPSILON)
        self.block = MoEBlock(channels, widths)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(self.norm1(x)) + x
        return out


class DepthFocus(nn.Module):
    """The feed-forward, normalised before and with a residual."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels, EPSILON)
        self.block1 = DepthFFN(channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block1(self.norm1(x)) + x
        return out


class Block(nn.Module):
    """Experts, then feed-forward."""

    def __init__(self, channels: int, widths: tuple[int, ...], kernel_size: int) -> None:
        super().__init__()
        self.spatial = SpatialFocus(channels, widths)
        self.depth = DepthFocus(channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.depth(self.spatial(x))
        return out


class MoASR(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 8. Returns (N, 3, scale * H, scale * W), not clipped.

    expert_widths: the channels of each expert. kernel_size: of the feed-forward's separable kernel.
    """

    def __init__(
        self,
        *,
        channels: int = 36,
        expert_widths: tuple[int, ...] = (2, 4, 8),
        kernel_size: int = 7,
        blocks: int = 9,
        scale: int = 4,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(1.0)
        self.shallow = nn.Conv2d(3, channels, 3, padding=1)
        self.feature_extractor = nn.Sequential(*(Block(channels, expert_widths, kernel_size) for _ in range(blocks)))
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = ChannelNorm(channels, EPSILON)
        self.upsampler = upsampler(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.shallow(self.normalise(x))
        deep = self.norm(self.feature_extractor(shallow)) + shallow
        upscaled: Tensor = self.upsampler(self.conv3x3(deep)) + self.normalise.mean
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A MoASR of the widths, depth, experts and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    experts = "feature_extractor.0.spatial.block.moe.experts"
    module = MoASR(
        channels=shapes["shallow.weight"][0],
        expert_widths=tuple(
            shapes[f"{experts}.{i}.linear1.weight"][0]
            for i in range(count_numbered(shapes, f"{experts}.{{}}.", first=0))
        ),
        kernel_size=shapes["feature_extractor.0.depth.block1.conv.0.weight"][2],
        blocks=count_numbered(shapes, "feature_extractor.{}.", first=0),
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> MoASR:
    """AiMF_SR's, 2025."""
    return MoASR()
