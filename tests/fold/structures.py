"""Re-parameterised blocks as papers and their code write them, each with its real padding, in plain PyTorch.

Every block takes (N, C, H, W) and is one convolution, border included, unless it stands under REFUSED or
BORDER_ONLY. Weights, biases and running statistics are random (see :func:`build`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 6


def ring_of(y: Tensor, value: Tensor, margin: int = 1) -> Tensor:
    """Zero-pad, then write a value per channel into the padded ring by slices, as ECB, DBB and NanoSR do."""
    y = F.pad(y, (margin,) * 4)
    value = value.view(1, -1, 1, 1)
    y[:, :, 0:margin, :] = value
    y[:, :, -margin:, :] = value
    y[:, :, :, 0:margin] = value
    y[:, :, :, -margin:] = value
    return y


class ConvBN(nn.Sequential):
    def __init__(self, c_in: int, c_out: int, kernel: int | tuple[int, int], **settings: object) -> None:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
        conv = nn.Conv2d(c_in, c_out, kernel, padding=padding, bias=False, **settings)  # type: ignore[arg-type]
        super().__init__(conv, nn.BatchNorm2d(c_out))


class Sum(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out = out + branch(x)
        return out


class RepVGG(Sum):
    """3x3, 1x1 and identity, a batch norm on each (Ding et al., CVPR 2021)."""

    def __init__(self, channels: int = CHANNELS, groups: int = 1) -> None:
        super().__init__(
            ConvBN(channels, channels, 3, groups=groups),
            ConvBN(channels, channels, 1, groups=groups),
            nn.BatchNorm2d(channels),
        )


class MobileOne(Sum):
    """Several overparameterised branches, a scale branch and an identity norm (Vasu et al., CVPR 2023)."""

    def __init__(self, channels: int = CHANNELS, kernel: int = 3, groups: int = 1, branches: int = 4) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            ConvBN(channels, channels, 1, groups=groups),
            *(ConvBN(channels, channels, kernel, groups=groups) for _ in range(branches)),
        )


class ACB(Sum):
    """3x3, 3x1 and 1x3 (Ding et al., ICCV 2019)."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__(*(ConvBN(channels, channels, kernel) for kernel in (3, (3, 1), (1, 3))))


class NormAndPad(nn.Module):
    """Batch norm, padded by what it makes of a zero, as DBB has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        of_zero = bn.bias.detach() - bn.running_mean * bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps)
        return ring_of(bn(x), of_zero)


class IdentityBased(nn.Module):
    """DBB's 1x1: an identity plus what was learnt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.identity: Tensor
        self.register_buffer("identity", torch.eye(channels).view(channels, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight + self.identity)


class DBB(Sum):
    """3x3, 1x1, 1x1-3x3 and 1x1-average pooling, norms on all (Ding et al., CVPR 2021)."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__(
            ConvBN(channels, channels, 3),
            ConvBN(channels, channels, 1),
            nn.Sequential(
                IdentityBased(channels),
                NormAndPad(channels),
                nn.Conv2d(channels, channels, 3, bias=False),
                nn.BatchNorm2d(channels),
            ),
            nn.Sequential(
                nn.Conv2d(channels, channels, 1, bias=False),
                NormAndPad(channels),
                nn.AvgPool2d(3, stride=1),
                nn.BatchNorm2d(channels),
            ),
        )


class Conv3XC(nn.Module):
    """Padded first, then biased 1x1-3x3-1x1, beside a 1x1 (SPAN, 2024)."""

    def __init__(self, channels: int = CHANNELS, gain: int = 2) -> None:
        super().__init__()
        self.sk = nn.Conv2d(channels, channels, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels * gain, 1),
            nn.Conv2d(channels * gain, channels * gain, 3),
            nn.Conv2d(channels * gain, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 1), "constant", 0)) + self.sk(x)


SOBEL = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
FILTERS = {"sobel_x": SOBEL, "sobel_y": SOBEL.T, "laplacian": torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])}


class Edge(nn.Module):
    """A 1x1, padded by its bias, then a fixed filter on each channel with learnt scale and bias."""

    def __init__(self, channels: int, name: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.randn(channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.randn(channels))
        self.mask = nn.Parameter(FILTERS[name].repeat(channels, 1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        assert self.conv.bias is not None
        y = ring_of(F.conv2d(x, self.conv.weight, self.conv.bias), self.conv.bias)
        return F.conv2d(y, self.scale * self.mask, self.bias, groups=len(self.bias))


class Expand(nn.Module):
    """A 1x1 that widens, padded by its bias, then a 3x3."""

    def __init__(self, channels: int, factor: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels * factor, 1)
        self.second = nn.Conv2d(channels * factor, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert self.first.bias is not None
        return self.second(ring_of(self.first(x), self.first.bias))


class ECB(Sum):
    """3x3, 1x1-3x3, two Sobel and a Laplacian branch (Zhang et al., ACM MM 2021)."""

    def __init__(self, channels: int = CHANNELS) -> None:
        edges = (Edge(channels, name) for name in FILTERS)
        super().__init__(nn.Conv2d(channels, channels, 3, padding=1), Expand(channels), *edges)


class EDBB(Sum):
    """ECB with a 1x1 and an identity beside it (FIMDN and others, 2022)."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__(ECB(channels), nn.Conv2d(channels, channels, 1), nn.Identity())


class RepMBConv(nn.Module):
    """1x1, 3x3 and 1x1 with the first bias written into the padded ring, and the input added (NanoSR, 2025)."""

    def __init__(self, channels: int = CHANNELS, ratio: int = 2, how: str = "slices") -> None:
        super().__init__()
        self.how = how
        self.conv1 = nn.Conv2d(channels, channels * ratio, 1)
        self.conv2 = nn.Conv2d(channels * ratio, channels * ratio, 3)
        self.conv3 = nn.Conv2d(channels * ratio, channels, 1)
        self.conv1x1 = nn.Conv2d(channels, channels, 1)
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)

    def padded(self, x: Tensor) -> Tensor:
        weight, bias = self.conv1.weight, self.conv1.bias
        assert bias is not None
        if self.how == "slices":
            return ring_of(self.conv1(x), bias)
        column = bias.view(1, -1, 1, 1)
        if self.how == "bias-after":
            return F.pad(F.conv2d(x, weight), (1, 1, 1, 1)) + column
        if self.how == "zero-mean":
            return F.pad(self.conv1(x) - column, (1, 1, 1, 1)) + column
        y = self.conv1(x)
        inside = F.pad(torch.ones_like(y[:, :1]), (1, 1, 1, 1))  # "mask"
        return F.pad(y, (1, 1, 1, 1)) + (1 - inside) * column

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.padded(x))) + self.conv1x1(x) + self.conv3x3(x) + x


class RRRB(nn.Module):
    """Residual in residual: 1x1, 3x3 plus its own input, 1x1 plus the block's (FMEN, 2022)."""

    def __init__(self, channels: int = CHANNELS, ratio: int = 2) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, channels * ratio, 1)
        self.middle = nn.Conv2d(channels * ratio, channels * ratio, 3)
        self.reduce = nn.Conv2d(channels * ratio, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.expand.bias is not None
        wide = self.expand(x)
        out = self.reduce(self.middle(ring_of(wide, self.expand.bias)) + wide)
        out += x
        return out


class ConvLoRA(nn.Module):
    """A frozen 3x3 and a low-rank update of its weight, reshaped from a matrix product."""

    def __init__(self, channels: int = CHANNELS, rank: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.a = nn.Parameter(torch.randn(rank * 3, channels * 3))
        self.b = nn.Parameter(torch.randn(channels * 3, rank * 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight + 0.5 * (self.b @ self.a).view(self.conv.weight.shape)
        return F.conv2d(x, weight, self.conv.bias, padding=1)


class WeightStandardised(nn.Module):
    """Weights recomputed in forward: zero mean, unit spread, a learnt gain; and a 1x1 merged in by einsum."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.after = nn.Conv2d(channels, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.randn(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        mean, spread = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        weight = self.gain * (weight - mean) / (spread + 2**-10)  # exact in float32, as constants of the graph are
        weight = torch.einsum("om,mikl->oikl", self.after.weight[:, :, 0, 0], weight)
        return F.conv2d(x, weight, self.conv.bias, padding=1) + x


class GeneralRep(nn.Module):
    """ESPAN's: a kxk, a 1x1 and chains of 1x1 without bias and kxk."""

    def __init__(self, channels: int = CHANNELS, kernel: int = 3, chains: int = 4) -> None:
        super().__init__()
        same = partial(nn.Conv2d, channels, channels, padding=kernel // 2)
        self.kxk = same(kernel)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.chains = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), same(kernel)) for _ in range(chains)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.kxk(x), self.pointwise(x), *(chain(x) for chain in self.chains)]).sum(0)


class Scaled(nn.Module):
    """Constants and learnt scales everywhere: before, after, negated, divided, subtracted from."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.before = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.after = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 0.25 * self.a(x * self.before) - self.b(-x / 3) * self.after + (1.5 - x)


class Concatenated(nn.Module):
    """Half of the channels through one convolution, half through another, joined and mixed by a 1x1."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        half = channels // 2
        self.left, self.right = (nn.Conv2d(half, half, 3, padding=1) for _ in range(2))
        self.whole = nn.Conv2d(channels, channels, 3, padding=1)
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return self.mix(torch.cat([self.left(left), self.right(right), self.whole(x)], dim=1))


class Anchor(nn.Module):
    """The image repeated for every subpixel, added to what a convolution makes (ABPN, QuickSRNet)."""

    def __init__(self, channels: int = CHANNELS, factor: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * factor, 3, padding=1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.repeat_interleave(x, self.factor, dim=1)


class ChannelsLast(nn.Module):
    """Pointwise layers written as nn.Linear on (N, H, W, C)."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(channels, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class FromImageSide(nn.Module):
    """A mean taken off and a range multiplied in before a convolution without padding, as networks open."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.conv = nn.Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((x - self.mean) * 255.0)


class FirstApart(nn.Sequential):
    """Two convolutions that keep the first channel to itself, and mix the others."""

    def __init__(self) -> None:
        super().__init__(conv(1, bias=False), conv(3))
        for part in self:
            with torch.no_grad():
                part.weight[0, 1:] = 0
                part.weight[1:, 0] = 0


def chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


def conv(
    kernel: int | tuple[int, int] = 3, c_in: int = CHANNELS, c_out: int = CHANNELS, **settings: object
) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding="same", **settings)  # type: ignore[arg-type]


Make = Callable[[], nn.Module]

FOLDING: dict[str, Make] = {
    "first-channel-apart": FirstApart,
    "repvgg": RepVGG,
    "repvgg-groups": partial(RepVGG, groups=2),
    "mobileone": MobileOne,
    "mobileone-depthwise": partial(MobileOne, groups=CHANNELS),
    "mobileone-5x5": partial(MobileOne, kernel=5, branches=2),
    "mobileone-pointwise": partial(MobileOne, kernel=1, branches=3),
    "acb": ACB,
    "dbb": DBB,
    "conv3xc": Conv3XC,
    "ecb": ECB,
    "edbb": EDBB,
    "repmbconv-slices": RepMBConv,
    "repmbconv-bias-after-pad": partial(RepMBConv, how="bias-after"),
    "repmbconv-pad-of-zero-mean": partial(RepMBConv, how="zero-mean"),
    "repmbconv-mask": partial(RepMBConv, how="mask"),
    "rrrb": RRRB,
    "conv-lora": ConvLoRA,
    "weights-recomputed": WeightStandardised,
    "espan-general": GeneralRep,
    "espan-general-9x9": partial(GeneralRep, kernel=9, chains=2),
    "norm-before-and-after": lambda: chain(nn.BatchNorm2d(CHANNELS), conv(1), nn.BatchNorm2d(CHANNELS)),
    "norm-before-padded-by-it": lambda: chain(
        NormAndPad(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3), nn.BatchNorm2d(CHANNELS)
    ),
    "norm-before-unpadded": lambda: chain(nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3)),
    "pointwise-chain": lambda: chain(conv(1, 6, 8), conv(1, 8, 8), conv(1, 8, 5)),
    "scaled": Scaled,
    "concatenated": Concatenated,
    "anchor": Anchor,
    "channels-last": ChannelsLast,
    "image-side": FromImageSide,
    "groups": lambda: Sum(conv(groups=3), conv(1, groups=3), nn.Identity()),
    "depthwise": lambda: Sum(conv(groups=CHANNELS), conv(1, groups=CHANNELS), nn.Identity()),
    "dilated": lambda: Sum(conv(dilation=2), conv(dilation=2), conv(1)),
    "dilated-2x3": lambda: Sum(conv(dilation=(2, 3)), conv(1), nn.Identity()),
    "kernel-7": lambda: Sum(conv(7), conv(5), conv(3), conv(1), nn.Identity()),
    "kernel-1x7": lambda: Sum(conv((1, 7)), conv((1, 3)), nn.Identity()),
    "kernel-5x3": lambda: Sum(conv((5, 3)), conv(3)),
    "even-kernel": lambda: Sum(conv(4), conv(2)),
    "transposed": lambda: Sum(nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1), conv(3)),
    "chain-unpadded": lambda: chain(nn.ZeroPad2d(2), nn.Conv2d(CHANNELS, 12, 3), nn.Conv2d(12, CHANNELS, 3)),
    "dropout": lambda: chain(conv(3), nn.Dropout(0.1), conv(1)),
}
"""Each is one convolution."""

SHRINKING = {"norm-before-unpadded", "image-side"}
"""Those without padding: they need 3x3 pixels."""


class Gated(nn.Module):
    """A convolution of a product of what two others make of the same input."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.a, self.b, self.after = (conv(3, channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.a(x) * self.b(x))


class DynamicWeights(nn.Module):
    """A 3x3 whose kernel is computed from the image."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.make = nn.Linear(channels, channels * 9)
        self.after = conv(1, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.make(x.mean((0, 2, 3))).view(-1, 1, 3, 3)
        return self.after(F.conv2d(x, kernel, padding=1, groups=x.shape[1]))


class ChannelAttention(nn.Module):
    """A 3x3 and a 1x1 with a global average, broadcast back, between them."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.a, self.b = conv(3, channels, channels), conv(1, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y - y.mean((2, 3), keepdim=True))


class Cropped(nn.Module):
    """Features repeated to twice the size, cut back to the image's size, and a linear layer of each pixel."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        enlarged = x.repeat(1, 1, 2, 2).relu()
        return F.conv2d(enlarged[:, :, :height, :width], self.linear.weight[:, :, None, None], self.linear.bias)


class TrainingNorm(nn.Module):
    """Statistics of the batch itself."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.a, self.b = conv(1, channels, channels), conv(1, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.batch_norm(self.a(x), None, None, training=True))


class UsedElsewhere(nn.Module):
    """Two convolutions, and an activation that reads the few channels between them too."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, channels, 3), conv(1, 3, channels), conv(1, 3, channels)

    def forward(self, x: Tensor) -> Tensor:
        between = self.a(x)
        return self.b(between) * self.c(between.relu())


BORDER_ONLY: dict[str, Make] = {
    "bias-before-zero-padding": lambda: chain(conv(1), conv(3)),
    "norm-before-zero-padding": lambda: chain(nn.BatchNorm2d(CHANNELS), conv(3)),
    "two-padded-3x3": lambda: chain(conv(3, 6, 24, bias=False), conv(3, 24, 6)),
}
"""Each is one convolution but for the image's border."""

REFUSED: dict[str, tuple[Make, str]] = {
    "relu-between": (lambda: chain(conv(3), nn.ReLU(), conv(3)), "follows Relu, which is not linear"),
    "silu-between": (lambda: chain(conv(3), nn.SiLU(), conv(3)), "follows SiLU, which is not linear"),
    "gelu-between": (lambda: chain(conv(3), nn.GELU(), conv(3)), "follows Gelu, which is not linear"),
    "leaky-relu-between": (
        lambda: chain(conv(3), nn.LeakyReLU(0.1), conv(3)),
        "follows LeakyRelu, which is not linear",
    ),
    "stride-between": (
        lambda: chain(nn.Conv2d(6, 6, 3, stride=2, padding=1), conv(1)),
        "stride 2x2",
    ),
    "gating": (Gated, "follows Mul of two feature maps"),
    "weights-from-the-input": (DynamicWeights, "the weights of which depend on the input"),
    "depthwise-separable-pair": (lambda: chain(conv(3, groups=6, bias=False), conv(1)), "would cost more"),
    "zeros-around": (lambda: chain(conv(1, bias=False), nn.ZeroPad2d(4)), "would cost more"),
    "low-rank-pair": (lambda: chain(conv(1, 6, 2, bias=False), conv(3, 2, 6)), "would cost more"),
    "reflect-padding": (
        lambda: chain(conv(1), nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")),
        "follows Pad, which fills in the image (reflect)",
    ),
    "training-norm": (TrainingNorm, "follows BatchNormalization, the statistics of which depend on the input"),
    "global-pooling": (ChannelAttention, "follows ReduceMean over the whole image"),
    "read-by-others-too": (UsedElsewhere, "would cost more"),
    "cropped": (Cropped, "follows Slice, to places computed from the image's size"),
}
"""What must stay as it is, and what the reason must say."""


def build(make: Make, seed: int = 0) -> nn.Module:
    """A block in evaluation mode, with running statistics and norm weights of their own."""
    torch.manual_seed(seed)
    module = make().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module


class Network(nn.Module):
    """A block that reads features, not the image."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.head, self.block = nn.Conv2d(3, CHANNELS, 1), block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.head(x).relu())


class Upscaler(nn.Module):
    """A network as users have them: a head, one of the blocks between activations, and a pixel shuffle."""

    def __init__(self, block: str, scale: int = 2) -> None:
        super().__init__()
        make = FOLDING.get(block) or BORDER_ONLY.get(block) or REFUSED[block][0]
        self.head, self.block = nn.Conv2d(3, CHANNELS, 3, padding=1), build(make)
        self.tail = nn.Sequential(nn.Conv2d(CHANNELS, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.silu(self.block(F.silu(self.head(x)))))
