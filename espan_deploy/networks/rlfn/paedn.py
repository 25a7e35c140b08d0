"""PAEDN: NTIRE 2025 efficient SR, team IVL: EFDN with SPAN's gate inside its cells and no attention behind them.

Deploy form: each edge-enhanced block is one ``rep_conv``. Training form: EFDN's branches, with EFDN's keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import same_conv
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.rlfn.blocks import EDBB

CELLS = 4


class Cell(nn.Module):
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


class PAEDN(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), clipped to [0, 1]."""

    def __init__(self, *, channels: int = 48, scale: int = 4, training_form: bool = False) -> None:
        super().__init__()
        self.head = same_conv(3, channels)
        self.cells = nn.ModuleList(Cell(channels, training_form=training_form) for _ in range(CELLS))
        self.local_fuse = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for _ in range(3))
        self.tail = nn.Sequential(EDBB(channels, 3 * scale**2, training_form=training_form), nn.PixelShuffle(scale))

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
    """A PAEDN of the width, scale and form that the shapes tell."""
    if (cells := count_numbered(shapes, "cells.{}.", first=0)) != CELLS:
        raise ValueError(f"{cells} cells, and PAEDN is wired for {CELLS}")
    training_form = "cells.0.conv2.conv1x1_sbx.k0" in shapes
    scale = scale_of_tail(shapes["tail.0.rep_conv.weight"][0])
    module = PAEDN(channels=shapes["head.weight"][0], scale=scale, training_form=training_form)
    return Architecture(module, scale, "training" if training_form else "deploy")


def reference() -> PAEDN:
    """IVL's, 2025."""
    return PAEDN()
