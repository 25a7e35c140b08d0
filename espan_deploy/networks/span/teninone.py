"""TenInOneSR: NTIRE 2025 efficient SR, team TACO_SR.

Four blocks of three convolutions behind a pooled attention that the first channel gates, joined as SPAN joins its own;
the image itself is added, enlarged by repetition.

Deploy form: each convolution is one ``eval_conv``. Training form: three 1x1-3x3-1x1 chains of growing width beside a
1x1, under the keys that the entrants' code keeps in its comments.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import Conv, EvalConv, same_conv
from espan_deploy.networks.entry import Architecture, Form, Shapes, count_numbered, scale_of_tail


class TenInOneConv(nn.Module):
    """Chains ``branches.{i}.{0,1,2}`` of 1x1, 3x3 and 1x1, beside a 1x1 ``sk``, summed.

    The input is padded before each chain's first 1x1, so the whole is exactly one 3x3, border included. gains: by
    how much each chain is wider than the input and the output.
    """

    deploy_key = "eval_conv"

    def __init__(self, in_channels: int, out_channels: int, *, gains: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, in_channels * gain, 1),
                nn.Conv2d(in_channels * gain, out_channels * gain, 3),
                nn.Conv2d(out_channels * gain, out_channels, 1),
            )
            for gain in gains
        )
        self.sk = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1))
        out: Tensor = self.sk(x)
        for branch in self.branches:
            out = out + branch(padded)
        return out

    linear = forward


class LocalAttention(nn.Module):
    """An attention map from a pooled image, resized to the whole one, and a gate from the first channel."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, mid_channels, 1),
            nn.MaxPool2d(7, stride=3),
            nn.Conv2d(mid_channels, mid_channels, 3, stride=2, padding=1),
            nn.Conv2d(mid_channels, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        attention = F.interpolate(self.body(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        return attention * torch.sigmoid(x[:, :1]) * x


class Block(nn.Module):
    """The attention, then three convolutions with SiLU between them, residual."""

    def __init__(self, conv: Conv, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.c1_r = conv(channels, channels)
        self.c2_r = conv(channels, channels)
        self.c3_r = conv(channels, channels)
        self.attn = LocalAttention(channels, mid_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its first convolution's activated one."""
        attended = self.attn(x)
        first = F.silu(self.c1_r(attended))
        return self.c3_r(F.silu(self.c2_r(first))) + attended, first


class TenInOneSR(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 7. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(
        self,
        *,
        channels: int = 48,
        attention_channels: int = 16,
        blocks: int = 4,
        scale: int = 4,
        conv: Conv = EvalConv,
    ) -> None:
        super().__init__()
        self.copies = scale**2
        self.conv_1 = conv(3, channels)
        self.blocks = nn.ModuleList(Block(conv, channels, attention_channels) for _ in range(blocks))
        self.conv_2 = conv(channels, channels)
        self.conv_cat = same_conv(4 * channels, channels, 1)
        self.tail = conv(channels, 3 * scale**2)
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        colours = [x[:, i : i + 1] for i in range(3)]
        enlarged = torch.cat([colour for colour in colours for _ in range(self.copies)], 1)
        shallow = self.conv_1(x)
        out, first = shallow, shallow
        for block in self.blocks:
            out, first = block(out)
        fused = self.conv_cat(torch.cat([shallow, out, first, self.conv_2(out)], 1))
        upscaled: Tensor = self.upsampler(self.tail(fused) + enlarged)
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A TenInOneSR of the widths, depth, scale and form that the shapes tell."""
    training_form = "conv_1.sk.weight" in shapes
    convolutions = count_numbered(shapes, "conv_1.branches.{}.", first=0)
    gains = tuple(shapes[f"conv_1.branches.{i}.0.weight"][0] // 3 for i in range(convolutions))
    last = "tail.sk.weight" if training_form else "tail.eval_conv.weight"
    scale = scale_of_tail(shapes[last][0])
    module = TenInOneSR(
        channels=shapes["conv_cat.weight"][0],
        attention_channels=shapes["blocks.0.attn.body.0.weight"][0],
        blocks=count_numbered(shapes, "blocks.{}.", first=0),
        scale=scale,
        conv=partial(TenInOneConv, gains=gains) if training_form else EvalConv,
    )
    stale = frozenset(key for key in shapes if training_form and ".eval_conv." in key)
    form: Form = "training" if training_form else "deploy"
    return Architecture(module, scale, form, redundant=stale)


def reference() -> TenInOneSR:
    """TACO_SR's, 2025."""
    return TenInOneSR()
