"""Where training starts: interpolation plus blocks that let signal and gradient through.

The attention ``(o + x) * (sigmoid(o) - 1/2)`` is near zero for small ``o``, so under the usual initialisation each
block shrinks its input to about an eighth and the last blocks hardly train. Each convolution is therefore scaled on
real crops, in forward order, after LSUV (Mishkin and Matas, ICLR 2016).

A chain's kernel is a product summed over 4 x 32 inner channels, so a step of Adam on both its factors moves the merged
kernel ten to forty times as far as the same step on the kxk does. Branches therefore start silent, and learn at their
own, lower rate (``branch_rate``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import GeneralRepConv, symmetric_attention
from training.merge import bias_of, chain_layers, merge_alike, rep_convs
from training.network import BLOCKS, TrainingNetwork

BISECTIONS = 30
RESIDUAL_SCALE = 0.01
FUSED_SCALE = 0.2
"""Standard deviation, in image units, of what the random part adds to the interpolation at the start."""


@torch.no_grad()
def initialise(network: TrainingNetwork, crops: Tensor) -> None:
    """Initialise in place on (N, 3, h, w) low-resolution crops in [0, 1]."""
    convs = rep_convs(network)
    for module in convs.values():
        _silence_branches(module)

    def blocks(x: Tensor, *names: str) -> list[Tensor]:
        """The outputs of consecutive blocks, normalised on the way."""
        outputs = [x]
        for name in names:
            outputs.append(_normalise_block([convs[n] for n in convs if n.startswith(f"{name}.")], outputs[-1]))
        return outputs[1:]

    shallow = _normalise(convs["espan.conv_1"], crops)
    shallow[:, :3] = _pass_colours(convs["espan.conv_1"], crops)
    backbone = blocks(shallow, *(f"espan.block_{i + 1}" for i in range(BLOCKS)))
    first, last = backbone[0], backbone[-1]
    if network.student is not None:
        tail = Tail(network.student.conv_cat, convs["student.conv_2"], convs["student.upsampler"])
        _initialise_tail(tail, shallow, first, last)
    last = blocks(last, *(f"extra.{i}" for i in range(len(network.extra))), "espan.teacher_block_seq")[-1]
    tail = Tail(network.espan.tea_conv_cat, convs["espan.tea_conv_2"], convs["espan.tea_upsampler.0"])
    _initialise_tail(tail, shallow, first, last)


class Tail(NamedTuple):
    """The layers behind the blocks."""

    fuse: nn.Conv2d
    conv_2: GeneralRepConv
    upsampler: GeneralRepConv


def _apply(module: GeneralRepConv, x: Tensor) -> Tensor:
    weight, bias = merge_alike([module])
    return F.conv2d(x, weight[0], bias[0], padding=weight.shape[-1] // 2)


def _silence_branches(module: GeneralRepConv) -> None:
    """The kxk starts as all of the kernel. The other branches start at zero, but with a gradient."""
    weight, bias = merge_alike([module])
    module.kxk.weight.copy_(weight[0])
    bias_of(module.kxk).copy_(bias[0])
    for layer in (module.pointwise, *(second for _, second in chain_layers(module))):
        layer.weight.zero_()
        bias_of(layer).zero_()


def _scale(module: GeneralRepConv, factor: float) -> None:
    module.kxk.weight *= factor
    bias_of(module.kxk).mul_(factor)


def _centre(module: GeneralRepConv, x: Tensor) -> Tensor:
    """Make every output channel's mean zero, by the bias. Returns the output."""
    out = _apply(module, x)
    mean = out.mean((0, 2, 3))
    bias_of(module.kxk).sub_(mean)
    return out - mean[:, None, None]


def _normalise(module: GeneralRepConv, x: Tensor, std: float = 1.0) -> Tensor:
    out = _centre(module, x)
    factor = std / float(out.std())
    _scale(module, factor)
    return out * factor


def _normalise_block(convs: list[GeneralRepConv], x: Tensor) -> Tensor:
    """Unit variance between the convolutions; the last one so large that the block's output has its input's scale."""
    *inner, last = convs
    out = x
    for conv in inner:
        out = F.silu(_normalise(conv, out))
    out = _centre(last, out)
    target = float(x.std())
    low, high = 0.0, 1e4
    for _ in range(BISECTIONS):  # the attention's output grows with its argument
        factor = (low + high) / 2 if low else high / 2
        if float(symmetric_attention(out * factor, x).std()) < target:
            low = factor
        else:
            high = factor
    _scale(last, high)
    return symmetric_attention(out * high, x)


def _pass_colours(head: GeneralRepConv, crops: Tensor) -> Tensor:
    """Make the head's first three channels the colours themselves. Returns those."""
    middle = head.kxk.weight.shape[-1] // 2
    head.kxk.weight[:3] = 0
    bias_of(head.kxk)[:3] = 0
    for colour in range(3):
        head.kxk.weight[colour, colour, middle, middle] = 1
    return crops


def _initialise_tail(tail: Tail, shallow: Tensor, first: Tensor, last: Tensor) -> None:
    """Bilinear interpolation of the colours in the first three channels, plus a little of everything else."""
    fuse, conv_2, upsampler = tail
    parts = torch.cat([shallow, _normalise(conv_2, last, float(last.std())), first, last], 1)
    bias = bias_of(fuse)
    bias.zero_()
    fuse.weight *= FUSED_SCALE / float(fuse(parts).std())
    bias -= fuse(parts).mean((0, 2, 3))
    fuse.weight[:3] = 0
    bias[:3] = 0
    for colour in range(3):
        fuse.weight[colour, colour] = 1
    fused = fuse(parts)
    upsampler.kxk.weight[:, :3] = 0
    _normalise(upsampler, fused, RESIDUAL_SCALE)
    upsampler.kxk.weight[:, :3] = bilinear_kernel(upsampler.kxk.weight.shape[0])


def bilinear_kernel(channels: int) -> Tensor:
    """(3 * scale**2, 3, 3, 3): bilinear interpolation of three colours in sub-pixel layout, pixel centres aligned."""
    scale = round((channels / 3) ** 0.5)
    taps = torch.zeros(scale, 3)
    for i in range(scale):
        offset = (i + 0.5) / scale - 0.5
        taps[i, 1] = 1 - abs(offset)
        taps[i, 2 if offset > 0 else 0] = abs(offset)
    kernel = torch.zeros(3, scale, scale, 3, 3, 3)
    for colour in range(3):
        kernel[colour, :, :, colour] = taps[:, None, :, None] * taps[None, :, None, :]
    return kernel.reshape(channels, 3, 3, 3)
