"""EFDN: Wang, "Edge-enhanced Feature Distillation Network for Efficient Super-Resolution", CVPR workshops 2022.

- EFDN itself, the baseline of NTIRE 2025 efficient SR: 48 channels, four cells.
- PAEDN (2025, team IVL): SPAN's gate inside its cells, and no attention behind them.

Deploy form: each edge-enhanced block is one ``rep_conv``. Training form: that convolution plus a 1x1 and three 1x1s
behind which fixed Sobel and Laplacian filters stand, with the original's keys. Original checkpoints hold one branch
more (``conv1x1_3x3``) that the published network does not compute.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import DeepESA, same_conv, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.rlfn.blocks import EDBB

CELLS = 4

UNUSED_BRANCH = ".conv1x1_3x3."


class PointwiseConv(nn.Module):
    """A 1x1 convolution and its PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(channels, channels, 1)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv1x1(x))
        return out


class Cell(nn.Module):
    """Three convolutions in a row; a 1x1 distils the input and each of them; joined, attended to, residual."""

    def __init__(self, channels: int, *, training_form: bool) -> None:
        super().__init__()
        self.conv1 = PointwiseConv(channels)
        self.conv2 = EDBB(channels, channels, training_form=training_form)
        self.conv3 = EDBB(channels, channels, training_form=training_form)
        self.fuse = nn.Conv2d(2 * channels, channels, 1)
        self.att = DeepESA(channels, channels // 4)
        self.branch = nn.ModuleList(nn.Conv2d(channels, channels // 2, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        stages = [x]
        for conv in (self.conv1, self.conv2, self.conv3):
            stages.append(conv(stages[-1]))
        distilled = [branch(stage) for branch, stage in zip(self.branch, stages, strict=True)]
        out: Tensor = self.att(self.fuse(torch.cat(distilled, 1))) + x
        return out


class GatedCell(nn.Module):
    """A 1x1 and two 3x3 in a row, the outputs of the latter gated by themselves; a 1x1 each; joined, residual."""

    def __init__(self, channels: int, *, training_form: bool) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 1)
        self.conv2 = EDBB(channels, channels, training_form=training_form)
        self.conv3 = EDBB(channels, channels, training_form=training_form)
        self.fuse = nn.Conv2d(3 * (channels // 2), channels, 1)
        self.branch = nn.ModuleList(nn.Conv2d(channels, channels // 2, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv0(x)
        second = self.conv2(first)
        third = self.conv3(second)
        gated = [first, *(stage * (torch.sigmoid(stage) - 0.5) for stage in (second, third))]
        out: Tensor = self.fuse(torch.cat([conv(stage) for conv, stage in zip(self.branch, gated, strict=True)], 1)) + x
        return out


class EFDN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), clipped to [0, 1].

    gated: PAEDN's cells, which take images of any size, and its edge-enhanced tail.
    """

    def __init__(self, *, channels: int = 48, scale: int = 4, training_form: bool = False, gated: bool = False) -> None:
        super().__init__()
        cell = GatedCell if gated else Cell
        self.head = same_conv(3, channels)
        self.cells = nn.ModuleList(cell(channels, training_form=training_form) for _ in range(CELLS))
        self.local_fuse = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for _ in range(CELLS - 1))
        outputs = 3 * scale**2
        tail = EDBB(channels, outputs, training_form=training_form) if gated else same_conv(channels, outputs)
        self.tail = shuffle_tail(tail, scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        first = self.cells[0](shallow)
        second = self.cells[1](first)
        third = self.cells[2](self.local_fuse[0](torch.cat([first, second], 1)))
        fourth = self.cells[3](self.local_fuse[1](torch.cat([second, third], 1)))
        out = self.local_fuse[2](torch.cat([second, fourth], 1)) + shallow
        upscaled: Tensor = self.tail(out)
        return upscaled.clamp(0, 1)


def build(shapes: Shapes) -> Architecture:
    """An EFDN or PAEDN of the width, scale and form that the shapes tell."""
    if (cells := count_numbered(shapes, "cells.{}.", first=0)) != CELLS:
        raise ValueError(f"{cells} cells, and EFDN is wired for {CELLS}")
    training_form = "cells.0.conv2.conv1x1_sbx.k0" in shapes
    gated = "cells.0.conv0.weight" in shapes
    scale = scale_of_tail(shapes["tail.0.rep_conv.weight" if gated else "tail.0.weight"][0])
    module = EFDN(channels=shapes["head.weight"][0], scale=scale, training_form=training_form, gated=gated)
    unused = frozenset(key for key in shapes if UNUSED_BRANCH in key)
    return Architecture(module, scale, "training" if training_form else "deploy", redundant=unused)


def reference() -> EFDN:
    """The baseline of 2025."""
    return EFDN()


def paedn() -> EFDN:
    """IVL's, 2025."""
    return EFDN(gated=True)
