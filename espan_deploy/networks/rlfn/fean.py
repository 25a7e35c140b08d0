"""FEAN: NTIRE 2025 efficient SR, team Cidaut AI ("Fused Edge Attention Network").

A residual block that attends to its own Sobel edges, then two blocks of inverted residuals with a pooled attention;
most 3x3 convolutions see only a quarter of the channels. There is one form: nothing in it is re-parameterised.

Original checkpoints hold a second edge block and two 1x1s that the published network does not have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import same_conv, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail

SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
SOBEL_Y = ((-1.0, -2.0, -1.0), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0))

EDGE_EPSILON = 1e-6
NEGATIVE_SLOPE = 0.05

PARTIAL = 4
"""A partial convolution takes one channel in so many."""

ATTENTION_GROUPS = 16
"""Between which the attention shuffles its channels; shapes do not tell it."""

UNUSED = ("eswrb2.", "conv_cat1.", "conv_cat2.")


class PartialConv(nn.Module):
    """A 3x3 convolution of the first quarter of the channels (Chen et al., CVPR 2023), under ``partial_conv3``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.taken = channels // PARTIAL
        self.partial_conv3 = same_conv(self.taken, self.taken, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.partial_conv3(x[:, : self.taken]), x[:, self.taken :]], 1)


class ShuffledConv(nn.Conv2d):
    """A convolution without bias whose output channels are shuffled between groups (ShuffleNet, CVPR 2018).

    Its weights are shuffled instead: the same, and free once they are constants.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, shuffle: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, bias=False)
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(self.shuffle, -1, *self.weight.shape[1:]).transpose(0, 1).flatten(0, 1)
        return F.conv2d(x, weight, stride=self.stride)


class InvertedResidual(nn.Module):
    """1x1 expansion, channels shuffled between two halves, a 3x3 each, 1x1 projection, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = ShuffledConv(channels, 2 * channels, 1, shuffle=2)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=False)
        self.project = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x))) + x
        return out


class Sobel(nn.Module):
    """The horizontal gradient, the vertical one, and their magnitude, channel by channel. Keys: the two kernels."""

    kernel_x: Tensor
    kernel_y: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel_x", torch.tensor(SOBEL_X).view(1, 1, 3, 3))
        self.register_buffer("kernel_y", torch.tensor(SOBEL_Y).view(1, 1, 3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        horizontal, vertical = (
            F.conv2d(x, kernel.expand(self.channels, 1, 3, 3), padding=1, groups=self.channels)
            for kernel in (self.kernel_x, self.kernel_y)
        )
        return horizontal, vertical, torch.sqrt(horizontal * horizontal + vertical * vertical + EDGE_EPSILON)


class EdgeBlock(nn.Module):
    """Two inverted residuals, attended to by their own edges; joined with what came before by a 1x1.

    ``theta`` is a parameter that nothing reads.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1_r = InvertedResidual(channels)
        self.c2_r = InvertedResidual(channels)
        self.c3_r = nn.Conv2d(channels, channels, 1)
        self.swt = Sobel(channels)
        self.concatandproyect = nn.Conv2d(3 * channels, channels, 1)
        self.pconv1, self.pconv2, self.pconv3, self.pconv4 = (PartialConv(channels) for _ in range(4))
        self.alpha, self.beta, self.gamma, self.theta, self.omega = (
            nn.Parameter(torch.ones(1, channels, 1, 1)) for _ in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = x + self.omega * F.silu(self.c2_r(F.silu(self.c1_r(x))))
        horizontal, vertical, magnitude = self.swt(features)
        edges = self.alpha * self.pconv1(horizontal) + self.beta * self.pconv2(vertical)
        edges = self.pconv4(edges + self.gamma * self.pconv3(magnitude))
        out: Tensor = self.concatandproyect(torch.cat([self.c3_r(edges * features), features, x], 1))
        return out


class GatedResidual(nn.Module):
    """3x3 each, 1x1 expansion, channels shuffled so that halves become neighbours, a gate, and a partial shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.DWConv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.PWConv1 = ShuffledConv(channels, 2 * channels, 1, shuffle=channels)
        self.PConv1 = PartialConv(2 * channels)
        self.Pconv2 = PartialConv(channels)
        self.Pconv3 = PartialConv(channels)
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        expanded = self.PConv1(self.PWConv1(self.DWConv1(x)))
        channels = self.DWConv1.out_channels
        gated = expanded[:, :channels] * expanded[:, channels:]
        out: Tensor = self.alpha * self.Pconv2(gated) + self.Pconv3(x)
        return out


class PooledAttention(nn.Module):
    """ESA with partial convolutions and shuffled channels, no biases. Takes images of 15 pixels and more."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.PWConv1 = nn.Conv2d(channels, mid_channels, 1, bias=False)
        self.conv2 = ShuffledConv(mid_channels, mid_channels, 3, shuffle=ATTENTION_GROUPS, stride=2)
        self.PConv1 = PartialConv(mid_channels)
        self.PConv2 = PartialConv(mid_channels)
        self.PWConv2 = nn.Conv2d(mid_channels, channels, 1, bias=False)
        self.alpha = nn.Parameter(torch.ones(1, mid_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        full_size = self.PWConv1(x)
        pooled = F.max_pool2d(self.conv2(full_size), 7, stride=3)
        coarse = F.interpolate(self.PConv1(pooled), size=x.shape[2:], mode="bilinear", align_corners=False)
        attention = self.PWConv2(self.alpha * coarse + self.PConv2(full_size))
        return torch.sigmoid(attention) * x


class GatedBlock(nn.Module):
    """Two gated residuals with leaky ReLU between them, then the attention."""

    def __init__(self, channels: int, esa_channels: int) -> None:
        super().__init__()
        self.IRB1 = GatedResidual(channels)
        self.IRB2 = GatedResidual(channels)
        self.Eesa = PooledAttention(channels, esa_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.Eesa(self.IRB2(F.leaky_relu(self.IRB1(x), NEGATIVE_SLOPE)))
        return out


class FEAN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 64, blocks: int = 2, esa_channels: int = 32, scale: int = 4) -> None:
        super().__init__()
        self.blocks = blocks
        self.conv_init = same_conv(3, channels, bias=False)
        self.eswrb = EdgeBlock(channels)
        for i in range(1, blocks + 1):
            self.add_module(f"block_{i}", GatedBlock(channels, esa_channels))
        self.upsampler = shuffle_tail(same_conv(channels, 3 * scale**2), scale)
        self.omega = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_init(x)
        out = self.eswrb(shallow)
        for i in range(1, self.blocks + 1):
            out = self.get_submodule(f"block_{i}")(out)
        upscaled: Tensor = self.upsampler(self.omega * out + shallow)
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A FEAN of the widths, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = FEAN(
        channels=shapes["conv_init.weight"][0],
        blocks=count_numbered(shapes, "block_{}."),
        esa_channels=shapes["block_1.Eesa.PWConv1.weight"][0],
        scale=scale,
    )
    unused = frozenset(key for key in shapes if key.startswith(UNUSED))
    return Architecture(module, scale, "deploy", redundant=unused)


def reference() -> FEAN:
    """Cidaut AI's, 2025."""
    return FEAN()
