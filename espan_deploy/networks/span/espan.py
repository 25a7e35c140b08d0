"""ESPAN: NTIRE 2025 efficient SR, team mbga ("Expanded SPAN for Efficient Super-Resolution").

Six attention blocks of 32 channels behind a 9x9 head. The last block has two convolutions instead of three:
it is what is left of the teacher of the self-distillation, hence the names of its keys.

Deploy form: each convolution is one ``eval_conv`` (the entrants' own checkpoint). Training form: each is a
:class:`~espan_deploy.networks.blocks.GeneralRepConv` under ``rep``, so ``block_1.c1_r.rep.kxk.weight`` stands where
the deploy form has ``block_1.c1_r.eval_conv.weight``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import SPAB, Conv, EvalConv, GeneralRepConv, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail


class RepConv(nn.Module):
    """The training-form twin of :class:`EvalConv`."""

    deploy_key = "eval_conv"

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.rep = GeneralRepConv(in_channels, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rep(x)
        return out

    linear = forward


class ESPAN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(
        self,
        *,
        channels: int = 32,
        mid_channels: int = 32,
        blocks: int = 5,
        scale: int = 4,
        head_kernel: int = 9,
        training_form: bool = False,
    ) -> None:
        super().__init__()
        conv: Conv = RepConv if training_form else EvalConv
        self.blocks = blocks
        self.conv_1 = conv(3, channels, head_kernel)
        for i in range(blocks):
            self.add_module(f"block_{i + 1}", SPAB(conv, channels, mid_channels))
        self.teacher_block_seq = SPAB(conv, channels, depth=2)
        self.tea_conv_cat = nn.Conv2d(4 * channels, channels, 1)
        self.tea_conv_2 = conv(channels, channels)
        self.tea_upsampler = shuffle_tail(conv(channels, 3 * scale**2), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(x)
        first = out = self.get_submodule("block_1")(shallow)
        for i in range(2, self.blocks + 1):
            out = self.get_submodule(f"block_{i}")(out)
        last = self.teacher_block_seq(out)
        fused = self.tea_conv_cat(torch.cat([shallow, self.tea_conv_2(last), first, last], 1))
        upscaled: Tensor = self.tea_upsampler(fused)
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """An ESPAN of the widths, depth, scale and form that the shapes tell."""
    training_form = "conv_1.rep.kxk.weight" in shapes
    conv = "rep.kxk" if training_form else "eval_conv"
    channels, _, head_kernel, _ = shapes[f"conv_1.{conv}.weight"]
    scale = scale_of_tail(shapes[f"tea_upsampler.0.{conv}.weight"][0])
    module = ESPAN(
        channels=channels,
        mid_channels=shapes[f"block_1.c1_r.{conv}.weight"][0],
        blocks=count_numbered(shapes, "block_{}."),
        scale=scale,
        head_kernel=head_kernel,
        training_form=training_form,
    )
    return Architecture(module, scale, "training" if training_form else "deploy")


def reference() -> ESPAN:
    """ESPAN as published."""
    return ESPAN()
