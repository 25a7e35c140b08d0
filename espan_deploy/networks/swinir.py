"""SwinIR's frame, and how its descendants' parts work on (N, C, H, W) maps.

Liang et al., "SwinIR: Image Restoration Using Swin Transformer", ICCV workshops 2021. Its descendants (HiT-SR,
MambaIR...) keep the frame and its key names, and replace what stands inside a group. They were written for tokens,
(N, H*W, C); here everything stays a map, so that the convolutions between need no transposing.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import Normalise, shuffle_tail


class ChannelLinear(nn.Linear):
    """A linear layer at every pixel of an (N, C, H, W) map: a 1x1 convolution with a linear layer's keys."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every pixel of an (N, C, H, W) map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DepthwiseGELU(nn.Module):
    """A depthwise convolution and GELU, under the key ``depthwise_conv.0``."""

    def __init__(self, channels: int, kernel_size: int = 5) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.depthwise_conv = nn.Sequential(conv, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.depthwise_conv(x)
        return out


class ConvFFN(nn.Module):
    """The feed-forward part with a depthwise convolution beside its hidden features (SRFormer, ICCV 2023)."""

    def __init__(self, channels: int, hidden: int, kernel_size: int = 5) -> None:
        super().__init__()
        self.fc1 = ChannelLinear(channels, hidden)
        self.dwconv = DepthwiseGELU(hidden, kernel_size)
        self.fc2 = ChannelLinear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x))
        out: Tensor = self.fc2(hidden + self.dwconv(hidden))
        return out


class ResidualGroup(nn.Module):
    """What a group is made of (``residual_group``), a 3x3 convolution, and the group's input added."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.residual_group = body
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.residual_group(x)) + x
        return out


class SwinFrame(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    tail_channels: of the tail of SwinIR's classical network, which doubles several times; by default it has the light
    one's, a single pixel shuffle. Keys: ``conv_first``, ``patch_embed.norm``, ``layers.{i}``, ``norm``,
    ``conv_after_body``, ``upsample.0``; or ``conv_before_upsample.0``, ``upsample.{0,2...}``, ``conv_last``.
    """

    def __init__(
        self, groups: Iterable[nn.Module], channels: int, scale: int, tail_channels: int | None = None
    ) -> None:
        super().__init__()
        self.normalise = Normalise(1.0)
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": ChannelNorm(channels)})
        self.layers = nn.ModuleList(groups)
        self.norm = ChannelNorm(channels)
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_before_upsample: nn.Module = nn.Identity()
        self.conv_last: nn.Module = nn.Identity()
        if tail_channels is None:
            self.upsample = shuffle_tail(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), scale)
            return
        before = nn.Conv2d(channels, tail_channels, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(before, nn.LeakyReLU())
        doublings = [
            shuffle_tail(nn.Conv2d(tail_channels, 4 * tail_channels, 3, padding=1), 2)
            for _ in range(scale.bit_length() - 1)
        ]
        self.upsample = nn.Sequential(*(part for doubling in doublings for part in doubling))
        self.conv_last = nn.Conv2d(tail_channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_first(self.normalise(x))
        deep = self.patch_embed["norm"](shallow)
        for group in self.layers:
            deep = group(deep)
        features = self.conv_before_upsample(self.conv_after_body(self.norm(deep)) + shallow)
        upscaled: Tensor = self.conv_last(self.upsample(features))
        return upscaled + self.normalise.mean
