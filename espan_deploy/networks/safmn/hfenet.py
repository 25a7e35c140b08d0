"""HFENet: NTIRE 2026 efficient SR, team Sunflower.

Blocks of a large-kernel attention (three pairs of dilated depthwise kernels with mirrored borders, each pair mixed
pixel by pixel) and of an entropy attention (channels weighed by the logarithm of their variance over the image), each
followed by a gated feed-forward.

The entrants compute in FP16 on a GPU and in FP32 elsewhere; this is the FP32 network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import Normalise
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.safmn.blocks import ChannelNorm, depthwise, upsampler, variance_over_image

EPSILON = 1e-5


class EntropyAttention(nn.Module):
    """Channels weighed by the entropy of a normal distribution of their variance: log(2 pi e var) / 2."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, squeezed, 1)
        self.conv2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        entropy = torch.log(2 * math.pi * math.e * variance_over_image(self.conv1(x))) / 2
        return x * torch.sigmoid(self.conv2(entropy))


class LargeKernelAttention(nn.Module):
    """Each third of the channels through two depthwise kernels in a chain, the two outputs mixed by factors that a 1x1
    makes of them; what comes of all multiplies the input."""

    PAIRS = (
        ("conv3_7", 3, 3, "conv3_13", 5, 3),
        ("conv3_3", 3, 1, "conv3_19", 7, 3),
        ("conv3_5", 5, 1, "conv3_21", 5, 5),
    )
    """Of each third: name, kernel and dilation of both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        third = channels // 3
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        for i, (near, near_kernel, near_dilation, far, far_kernel, far_dilation) in enumerate(self.PAIRS, 1):
            self.add_module(near, mirrored(third, near_kernel, near_dilation))
            self.add_module(far, mirrored(third, far_kernel, far_dilation))
            self.add_module(f"mix{i}", nn.Sequential(nn.Conv2d(2 * third, 2, 1), nn.Sigmoid()))

    def forward(self, x: Tensor) -> Tensor:
        mixed = []
        for i, (part, (near_name, _, _, far_name, _, _)) in enumerate(zip(x.chunk(3, 1), self.PAIRS, strict=True), 1):
            near = self.get_submodule(near_name)(part)
            far = self.get_submodule(far_name)(near)
            factors = self.get_submodule(f"mix{i}")(torch.cat([near, far], 1))
            mixed.append(factors[:, :1] * near + factors[:, 1:] * far)
        return x * F.gelu(self.conv(torch.cat(mixed, 1)))


class FeedForward(nn.Module):
    """Half of the features, through a depthwise convolution, times the other half."""

    def __init__(self, channels: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = depthwise(hidden // 2, kernel_size)
        self.conv2 = nn.Conv2d(hidden // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        factor, features = self.conv1(x).chunk(2, 1)
        out: Tensor = self.conv2(self.dwconv(features) * factor)
        return out


class AttentionBlock(nn.Module):
    """An attention between two 1x1, then a feed-forward, each normalised before and with a residual.

    names: what the keys call the first 1x1, the attention, the second 1x1 and the feed-forward.
    """

    def __init__(self, channels: int, attention: nn.Module, feed_forward: FeedForward, wide: int, names: Names) -> None:
        super().__init__()
        self.names = names
        self.layer_norm_pre = ChannelNorm(channels, EPSILON)
        self.layer_norm_aft = ChannelNorm(channels, EPSILON)
        parts = (nn.Conv2d(channels, wide, 1), attention, nn.Conv2d(wide, channels, 1), feed_forward)
        for name, part in zip(names, parts, strict=True):
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        enter, attention, leave, feed_forward = (self.get_submodule(name) for name in self.names)
        x = leave(attention(F.gelu(enter(self.layer_norm_pre(x))))) + x
        out: Tensor = feed_forward(self.layer_norm_aft(x)) + x
        return out


Names = tuple[str, str, str, str]

SPATIAL: Names = ("encoder", "slka", "decoder", "sgfn")
CHANNEL: Names = ("conv1", "attn", "conv2", "ffn")


class Block(nn.Module):
    """Large-kernel attention, then entropy attention."""

    def __init__(self, channels: int, wide: int, squeezed: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        spatial, channel = (FeedForward(channels, hidden, kernel_size) for _ in range(2))
        self.slkab = AttentionBlock(channels, LargeKernelAttention(wide), spatial, wide, SPATIAL)
        self.eab = AttentionBlock(channels, EntropyAttention(wide, squeezed), channel, wide, CHANNEL)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.eab(self.slkab(x))
        return out


class HFENet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 11. Returns (N, 3, scale * H, scale * W), not clipped.

    wide: channels of the attentions. squeezed: of the entropies. hidden, kernel_size: of the feed-forward.
    """

    def __init__(
        self,
        *,
        channels: int = 27,
        wide: int = 54,
        squeezed: int = 6,
        hidden: int = 54,
        kernel_size: int = 3,
        blocks: int = 7,
        scale: int = 4,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(1.0)
        self.simple_encoder = nn.Conv2d(3, channels, 3, padding=1)
        self.pipeline = nn.Sequential(*(Block(channels, wide, squeezed, hidden, kernel_size) for _ in range(blocks)))
        self.after_pipe = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = upsampler(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = F.gelu(self.simple_encoder(self.normalise(x)))
        deep = self.after_pipe(self.pipeline(shallow)) + shallow
        upscaled: Tensor = self.upsampler(deep) + self.normalise.mean
        return upscaled


def mirrored(channels: int, kernel_size: int, dilation: int) -> nn.Conv2d:
    """A depthwise convolution whose border is the image mirrored."""
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(
        channels,
        channels,
        kernel_size,
        padding=padding,
        dilation=dilation,
        groups=channels,
        padding_mode="reflect",
    )


def build(shapes: Shapes) -> Architecture:
    """An HFENet of the widths, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = HFENet(
        channels=shapes["simple_encoder.weight"][0],
        wide=shapes["pipeline.0.slkab.encoder.weight"][0],
        squeezed=shapes["pipeline.0.eab.attn.conv1.weight"][0],
        hidden=shapes["pipeline.0.eab.ffn.conv1.weight"][0],
        kernel_size=shapes["pipeline.0.eab.ffn.dwconv.weight"][2],
        blocks=count_numbered(shapes, "pipeline.{}.", first=0),
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> HFENet:
    """Sunflower's, 2026."""
    return HFENet()
