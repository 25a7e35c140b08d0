"""FSANet: NTIRE 2025 efficient SR, team CUIT_HTTP ("Frequency-Segmented Attention Network").

BSRN's shape: blocks that distil features while convolutions of half the channels carry on; behind each, the spectrum's
segments are weighed and the image is multiplied by what they transform back to.

Deploy form: one depthwise ``pw`` of half the channels. Training form: three ``pws``, of 1x1, 3x3 and 5x5, and a skip.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import BSConv, Normalise, same_conv, shuffle_tail
from espan_deploy.networks.entry import Architecture, Form, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.fourier.blocks import irfft2, rfft2

COPIES = 4
"""How often the image stands in the network's input, side by side."""

SEGMENTS = 5
"""Along each side of the spectrum."""

NEGATIVE_SLOPE = 0.2

STAGES = 3
"""That distil, before the last."""


class PartialDepthwise(nn.Module):
    """A kxk convolution per channel, of the first half of them; then a 1x1 without bias."""

    def __init__(self, channels: int, kernel_sizes: tuple[int, ...], *, training_form: bool) -> None:
        super().__init__()
        self.taken = channels // 2

        def depthwise(size: int) -> nn.Conv2d:
            return nn.Conv2d(self.taken, self.taken, size, padding=size // 2, groups=self.taken)

        self.training_form = training_form
        if training_form:
            self.pws = nn.ModuleList(depthwise(size) for size in kernel_sizes)
        else:
            self.pw = depthwise(kernel_sizes[-1])
        self.pd = nn.Conv2d(channels, channels, 1, bias=False)

    def deploy_state(self) -> dict[str, Tensor]:
        """The tensors of the deploy form: branches of other sizes grow a frame of zeros, the skip is a one."""
        branches = [dict(conv.named_parameters()) for conv in self.pws]
        widest = branches[-1]["weight"].shape[-1]
        kernel = F.pad(torch.ones_like(branches[0]["weight"][:, :, :1, :1]), (widest // 2,) * 4)
        for branch in branches:
            kernel = kernel + F.pad(branch["weight"], ((widest - branch["weight"].shape[-1]) // 2,) * 4)
        bias = torch.stack([branch["bias"] for branch in branches]).sum(0)
        return {"pw.weight": kernel, "pw.bias": bias, "pd.weight": self.pd.weight}

    def forward(self, x: Tensor) -> Tensor:
        first, rest = x[:, : self.taken], x[:, self.taken :]
        if self.training_form:
            filtered = first
            for conv in self.pws:
                filtered = filtered + conv(first)
        else:
            filtered = self.pw(first)
        out: Tensor = self.pd(torch.cat([filtered, rest], 1))
        return out


class SegmentGain(nn.Module):
    """Each segment of the spectrum, five by five, times a factor per channel; a bias; a skip.

    Keys: ``biasw`` and ``convs.0.0.weight``, the factors by channel, row and column.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        segments = channels * SEGMENTS**2
        self.convs = nn.ModuleList([nn.ModuleList([nn.Conv2d(segments, segments, 1, groups=segments, bias=False)])])
        self.biasw = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        convs = self.convs[0]
        assert isinstance(convs, nn.ModuleList)
        conv = convs[0]
        assert isinstance(conv, nn.Conv2d)
        factors = conv.weight.view(1, self.channels, SEGMENTS, SEGMENTS)
        rows, columns = (
            torch.arange(size, device=x.device) // ((size + SEGMENTS - 1) // SEGMENTS) for size in x.shape[2:]
        )
        return x * factors.index_select(2, rows).index_select(3, columns) + self.biasw + x


class FSA(nn.Module):
    """Frequency-segmented attention: the same layers for the spectrum's real and imaginary part."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, mid_channels, 1)
        self.conv2 = SegmentGain(mid_channels)
        self.conv3 = nn.Conv2d(mid_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = rfft2(x)
        return x * irfft2((self.weigh(real), self.weigh(imaginary)), *x.shape[2:])

    def weigh(self, part: Tensor) -> Tensor:
        """One part of the spectrum, and what its layers add to it."""
        segmented = self.conv2(F.leaky_relu(self.conv1(part), NEGATIVE_SLOPE))
        out: Tensor = self.conv3(F.leaky_relu(segmented, NEGATIVE_SLOPE)) + part
        return out


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        weight, bias = (parameter.view(1, -1, 1, 1) for parameter in (self.weight, self.bias))
        return centred / torch.sqrt(variance + self.eps) * weight + bias


class FSAB(nn.Module):
    """Three stages that distil half the channels and carry on, a last one, joined; attention; norm; residual."""

    def __init__(self, channels: int, mid_channels: int, kernel_sizes: tuple[int, ...], *, training_form: bool) -> None:
        super().__init__()
        half = channels // 2
        for i in range(1, STAGES + 1):
            self.add_module(f"c{i}d", nn.Conv2d(channels, half, 1))
            self.add_module(f"c{i}r", PartialDepthwise(channels, kernel_sizes, training_form=training_form))
        self.c4 = BSConv(channels, half)
        self.c5 = nn.Conv2d((STAGES + 1) * half, channels, 1)
        self.dfab = FSA(channels, mid_channels)
        self.c6 = nn.Conv2d(channels, channels, 1)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        rest, kept = x, []
        for i in range(1, STAGES + 1):
            kept.append(F.gelu(self.get_submodule(f"c{i}d")(rest)))
            rest = F.gelu(self.get_submodule(f"c{i}r")(rest))
        kept.append(F.gelu(self.c4(rest)))
        out: Tensor = self.norm(self.c6(self.dfab(self.c5(torch.cat(kept, 1))))) + x
        return out


class FSANet(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    kernel_sizes: of the training form's branches; the deploy form has the last.
    """

    def __init__(
        self,
        *,
        channels: int = 56,
        attention_channels: int = 28,
        blocks: int = 8,
        scale: int = 4,
        kernel_sizes: tuple[int, ...] = (1, 3, 5),
        training_form: bool = False,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(1.0)
        self.first_conv = BSConv(3 * COPIES, channels)
        self.body = nn.ModuleList(
            FSAB(channels, attention_channels, kernel_sizes, training_form=training_form) for _ in range(blocks)
        )
        self.c1 = nn.Conv2d(blocks * channels, channels, 1)
        self.c2 = BSConv(channels, channels)
        self.upsampler = shuffle_tail(same_conv(channels, 3 * scale**2), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.first_conv(torch.cat([self.normalise(x)] * COPIES, 1))
        out, outputs = shallow, []
        for block in self.body:
            out = block(out)
            outputs.append(out)
        fused = self.c2(F.gelu(self.c1(torch.cat(outputs, 1))))
        upscaled: Tensor = self.upsampler(fused + shallow)
        return upscaled + self.normalise.mean


def build(shapes: Shapes) -> Architecture:
    """An FSANet of the widths, depth, scale and form that the shapes tell."""
    branches = count_numbered(shapes, "body.0.c1r.pws.{}.", first=0)
    widest = f"body.0.c1r.pws.{branches - 1}" if branches else "body.0.c1r.pw"
    kernel_sizes = tuple(shapes[f"body.0.c1r.pws.{i}.weight"][-1] for i in range(branches))
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = FSANet(
        channels=shapes["first_conv.pw.weight"][0],
        attention_channels=shapes["body.0.dfab.conv1.weight"][0],
        blocks=count_numbered(shapes, "body.{}.", first=0),
        scale=scale,
        kernel_sizes=kernel_sizes or (shapes[f"{widest}.weight"][-1],),
        training_form=bool(branches),
    )
    form: Form = "training" if branches else "deploy"
    return Architecture(module, scale, form)


def reference() -> FSANet:
    """CUIT_HTTP's, 2025, folded."""
    return FSANet()
