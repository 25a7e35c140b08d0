"""EFDN: Wang, "Edge-enhanced Feature Distillation Network for Efficient Super-Resolution", CVPR workshops 2022.

The baseline of NTIRE 2025 efficient SR, 48 channels, four cells.

Deploy form: each edge-enhanced block is one ``rep_conv``. Training form: that convolution plus a 1x1 and three 1x1s
behind which fixed Sobel and Laplacian filters stand, with the original's keys. Original checkpoints hold one branch
more (``conv1x1_3x3``) that the published network does not compute.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import ESA_MIN_SIZE, DeepESA, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.rlfn.blocks import EDBB

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


class EFDN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W at least 15. Returns (N, 3, scale * H, scale * W), clipped to [0, 1]."""

    def __init__(self, *, channels: int = 48, scale: int = 4, training_form: bool = False) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.cells = nn.ModuleList(Cell(channels, training_form=training_form) for _ in range(4))
        self.local_fuse = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for _ in range(3))
        self.tail = shuffle_tail(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), scale)

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
    """An EFDN of the width, scale and form that the shapes tell."""
    if (cells := count_numbered(shapes, "cells.{}.", first=0)) != 4:
        raise ValueError(f"{cells} cells, and EFDN is wired for 4")
    training_form = "cells.0.conv2.conv1x1_sbx.k0" in shapes
    scale = scale_of_tail(shapes["tail.0.weight"][0])
    module = EFDN(channels=shapes["head.weight"][0], scale=scale, training_form=training_form)
    unused = frozenset(key for key in shapes if UNUSED_BRANCH in key)
    return Architecture(
        module, scale, "training" if training_form else "deploy", min_size=ESA_MIN_SIZE, redundant=unused
    )


def reference() -> EFDN:
    """The baseline of 2025."""
    return EFDN()
