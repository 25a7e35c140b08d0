"""Blocks that several networks share, in the deploy form and in the training form.

Every feature map is (N, C, H, W), float. Padding is zero, and always "same", unless a block says otherwise.
No ``forward`` writes to a weight: a training form computes its branches, and folding is a separate step. What has a
size computed from the image's (adaptive pooling, windows, nearest neighbours) is in ``grids.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Form, Shapes

Conv = Callable[..., nn.Module]
"""Makes a "same" convolution of (in_channels, out_channels, kernel_size=3, *, bias=True), in one form or the other."""

REP_CHAINS = 4
"""1x1-kxk branches of one general re-parameterised convolution (ESPAN factsheet, fig. 1)."""

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""The mean colour of DIV2K in [0, 1]: what SPAN and its descendants subtract."""

ESA_MIN_SIZE = 15
"""The smallest image ESA takes: its stride-2 3x3 convolution must leave the 7x7 that its pooling needs."""

LORA_SCALING = 2.0
"""alpha / r of every ConvLoRA layer that team EMSR lists; shapes tell r, but not alpha."""


Activation = Callable[[Tensor], Tensor]


def same_conv(in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = True) -> nn.Conv2d:
    """The plain :data:`Conv`: one convolution, nothing around it."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)


def separable_conv(channels: int, mid_channels: int, *, bias: bool) -> nn.Sequential:
    """A 3x3 of low rank: a 3x1 without bias, then a 1x3. Keys: ``0.weight``, ``1.weight`` and, if any, ``1.bias``."""
    return nn.Sequential(
        nn.Conv2d(channels, mid_channels, (3, 1), padding=(1, 0), bias=False),
        nn.Conv2d(mid_channels, channels, (1, 3), padding=(0, 1), bias=bias),
    )


class EvalConv(nn.Module):
    """A convolution in deploy form: one ``eval_conv``, the name most challenge checkpoints give it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        self.eval_conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.eval_conv(x)
        return out


class Conv3XC(nn.Module):
    """SPAN's convolution in training form (Wan et al., CVPR workshops 2024): a 1x1-3x3-1x1 chain beside a 1x1.

    The input is padded before the chain's first 1x1, so that convolution's bias reaches the padding too, and the
    whole is exactly one 3x3 convolution, border included.

    Keys: ``conv.{0,1,2}.{weight,bias}``, ``sk.{weight,bias}``. Original checkpoints add an ``eval_conv`` that is
    recomputed from these and may be stale.
    """

    deploy_key = "eval_conv"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = True, gain: int = 2
    ) -> None:
        super().__init__()
        self.margin = kernel_size // 2
        self.sk = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, in_channels * gain, 1, bias=bias),
            nn.Conv2d(in_channels * gain, out_channels * gain, kernel_size, bias=bias),
            nn.Conv2d(out_channels * gain, out_channels, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (self.margin,) * 4)) + self.sk(x)
        return out

    linear = forward


class LoRAConv(nn.Conv2d):
    """A "same" convolution with a low-rank update of its weight (ConvLoRA; NTIRE 2025, team EMSR).

    Keys: ``weight``, ``bias``, ``lora_A`` (rank * k, in * k) and ``lora_B`` (out * k, rank * k). The weight is the
    frozen one, before the update was merged into it.
    """

    deploy_key = ""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, rank: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.lora_A = nn.Parameter(torch.randn(rank * kernel_size, in_channels * kernel_size) * 1e-2)
        self.lora_B = nn.Parameter(torch.zeros(out_channels * kernel_size, rank * kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        update = (self.lora_B @ self.lora_A).view(self.weight.shape) * LORA_SCALING
        return F.conv2d(x, self.weight + update, self.bias, padding=self.padding)

    linear = forward


class GeneralRepConv(nn.Module):
    """ESPAN's general re-parameterised convolution in training form (NTIRE 2025, team mbga, fig. 1).

    The sum of one kxk convolution, one 1x1 convolution and four 1x1-kxk chains; no skip. The 1x1 that opens
    a chain has no bias: behind it the kxk pads with zeros, and a bias would be missing from that padding, so
    the chain would not be one convolution at the image's border.

    Keys: ``kxk.{weight,bias}``, ``pointwise.{weight,bias}``, ``chains.{0..3}.0.weight`` (1x1) and
    ``chains.{0..3}.1.{weight,bias}`` (kxk).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, chains: int = REP_CHAINS) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.kxk = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)
        self.chains = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.Conv2d(out_channels, out_channels, kernel_size, padding=padding),
            )
            for _ in range(chains)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.kxk(x) + self.pointwise(x)
        for chain in self.chains:
            out = out + chain(x)
        return out


class Normalise(nn.Module):
    """``(x - mean colour) * img_range``, as SPAN does it before its first convolution. Has no keys."""

    mean: Tensor

    def __init__(self, img_range: float = 255.0, mean: tuple[float, float, float] = RGB_MEAN) -> None:
        super().__init__()
        self.img_range = img_range
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.img_range


class SPAB(nn.Module):
    """SPAN's block: ``depth`` convolutions (two at least) with SiLU between them, then the symmetric attention.

    Where the block changes the number of channels there is no shortcut to attend with, and the last
    convolution's output is the block's (SPANF's first block).
    """

    def __init__(
        self,
        conv: Conv,
        in_channels: int,
        mid_channels: int | None = None,
        out_channels: int | None = None,
        *,
        depth: int = 3,
        conv_name: str = "c{}_r",
    ) -> None:
        super().__init__()
        mid_channels, out_channels = mid_channels or in_channels, out_channels or in_channels
        widths = [in_channels] + [mid_channels] * (depth - 1) + [out_channels]
        self.names = [conv_name.format(i + 1) for i in range(depth)]
        self.attends = in_channels == out_channels
        for name, width_in, width_out in zip(self.names, widths, widths[1:], strict=False):
            self.add_module(name, conv(width_in, width_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.with_first(x)[0]

    def with_first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and the activated output of its first convolution (SPAN's tail reads the last one)."""
        first = F.silu(self.get_submodule(self.names[0])(x))
        return self.after_first(x, first), first

    def after_first(self, x: Tensor, first: Tensor) -> Tensor:
        """The block's output from its input and its first convolution's activated output."""
        out = self.get_submodule(self.names[1])(first)
        for name in self.names[2:]:
            out = self.get_submodule(name)(F.silu(out))
        return symmetric_attention(out, x) if self.attends else out


class ESA(nn.Module):
    """Enhanced spatial attention (Liu et al., CVPR 2020), as the efficient-SR challenges slimmed it down.

    The attention map is computed from a pooled image and resized to the whole one: its grid depends on the image's
    size, so a network with ESA cannot be tiled exactly. Takes images of :data:`ESA_MIN_SIZE` and more.

    conv3: the 3x3 behind the pooling. conv2: the 3x3 of stride 2 before it, without padding; None for a plain one.
    skip_conv: whether a 1x1 ``conv_f`` stands in the full-size branch. bias: of the plain convolutions.
    """

    def __init__(
        self,
        channels: int,
        mid_channels: int,
        conv3: nn.Module,
        *,
        skip_conv: bool,
        conv2: nn.Module | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, mid_channels, 1, bias=bias)
        self.conv_f = nn.Conv2d(mid_channels, mid_channels, 1, bias=bias) if skip_conv else nn.Identity()
        self.conv2 = conv2 or nn.Conv2d(mid_channels, mid_channels, 3, stride=2, bias=bias)
        self.conv3 = conv3
        self.conv4 = nn.Conv2d(mid_channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        full_size = self.conv1(x)
        pooled = F.max_pool2d(self.conv2(full_size), 7, stride=3)
        coarse = F.interpolate(self.refine(pooled), size=x.shape[2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(coarse + self.conv_f(full_size)))

    def refine(self, pooled: Tensor) -> Tensor:
        out: Tensor = self.conv3(pooled)
        return out


class DeepESA(ESA):
    """ESA with three convolutions on the pooled image instead of one, and an activation between them.

    conv: makes these three.
    """

    def __init__(
        self,
        channels: int,
        mid_channels: int,
        *,
        conv: Conv = same_conv,
        conv2: nn.Module | None = None,
        activation: Activation = F.relu,
    ) -> None:
        super().__init__(channels, mid_channels, conv(mid_channels, mid_channels), skip_conv=True, conv2=conv2)
        self.conv_max = conv(mid_channels, mid_channels)
        self.conv3_ = conv(mid_channels, mid_channels)
        self.activation = activation

    def refine(self, pooled: Tensor) -> Tensor:
        out: Tensor = self.conv3_(self.activation(self.conv3(self.activation(self.conv_max(pooled)))))
        return out


class BSConv(nn.Module):
    """Blueprint separable convolution, unconstrained (Haase and Amthor, CVPR 2020): a 1x1, then a kxk per channel.

    Keys: ``pw.weight`` (no bias), ``dw.{weight,bias}``. padding: "same" unless given. mirrored: whether the border is
    the image mirrored, and not zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        self.pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.dw = nn.Conv2d(
            out_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups=out_channels,
            padding_mode="reflect" if mirrored else "zeros",
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dw(self.pw(x))
        return out


class ContrastAttention(nn.Module):
    """Contrast-aware channel attention (IMDN, Hui et al., ACM MM 2019): mean plus deviation over the whole image.

    Keys: ``conv_du.{0,2}.{weight,bias}``. reduction: of the channels between the two 1x1.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        centred = x - mean
        deviation = (centred * centred).mean((2, 3), keepdim=True).sqrt()
        attended: Tensor = x * self.conv_du(deviation + mean)
        return attended


def symmetric_attention(features: Tensor, shortcut: Tensor) -> Tensor:
    """SPAN's parameter-free attention, ``(o + x) * (sigmoid(o) - 1/2)`` (Wan et al., CVPR workshops 2024)."""
    return (features + shortcut) * (torch.sigmoid(features) - 0.5)


def bias_padded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution whose bias also fills a ring of one pixel around the image.

    A 3x3 convolution without padding may follow, and the two are exactly one 3x3 convolution, border included.
    The bias is added after the padding: the same as writing it into the ring, without writing in place.
    """
    return F.pad(F.conv2d(x, weight), (1, 1, 1, 1)) + bias.view(1, -1, 1, 1)


def in_turn(blocks: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """What each block makes of what the one before it made, the first of x."""
    outputs: list[Tensor] = []
    for block in blocks:
        outputs.append(block(outputs[-1] if outputs else x))
    return outputs


def numbered(module: nn.Module, pattern: str, count: int) -> list[nn.Module]:
    """The modules under ``pattern.format(1)`` to ``pattern.format(count)``."""
    return [module.get_submodule(pattern.format(i + 1)) for i in range(count)]


def shuffle_tail(conv: nn.Module, scale: int) -> nn.Sequential:
    """The convolution to 3 * scale**2 channels, and the pixel shuffle behind it."""
    return nn.Sequential(conv, nn.PixelShuffle(scale))


def conv_form(shapes: Shapes, key: str) -> tuple[Conv, Form]:
    """In which form the convolution under this key is: :class:`Conv3XC` of its gain, or :class:`EvalConv`."""
    skip = shapes.get(f"{key}.sk.weight")
    if skip is None:
        return EvalConv, "deploy"
    return partial(Conv3XC, gain=shapes[f"{key}.conv.0.weight"][0] // skip[1]), "training"


def stale_keys(shapes: Shapes) -> frozenset[str]:
    """The ``eval_conv`` that original training-form checkpoints keep beside each :class:`Conv3XC`."""
    return frozenset(k for k in shapes if ".eval_conv." in k and f"{k.split('.eval_conv.')[0]}.sk.weight" in shapes)
