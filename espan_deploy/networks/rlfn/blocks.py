"""Blocks that several distillation networks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import Activation, bias_padded, in_turn, numbered, same_conv

SOBEL_X = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
EDGES = {"conv1x1_sbx": SOBEL_X, "conv1x1_sby": SOBEL_Y, "conv1x1_lpl": LAPLACIAN}
"""The edge branches of a block, by their keys."""

RFDB_DISTILLATIONS = 3

Filter = tuple[tuple[float, float, float], ...]


class EdgeBranch(nn.Module):
    """A 1x1 convolution, then one fixed 3x3 filter per channel, scaled by a learnt factor (ECBSR, ACM MM 2021).

    Keys: ``k0, b0`` (1x1), ``scale``, ``bias`` and ``mask``, the filter.
    """

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, edge_filter: Filter) -> None:
        super().__init__()
        pointwise = nn.Conv2d(in_channels, out_channels, 1)
        assert pointwise.bias is not None
        self.k0, self.b0 = pointwise.weight, pointwise.bias
        self.scale = nn.Parameter(torch.randn(out_channels, 1, 1, 1) * 1e-3)
        self.bias = nn.Parameter(torch.randn(out_channels) * 1e-3)
        self.register_buffer("mask", torch.tensor(edge_filter).repeat(out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        padded = bias_padded(x, self.k0, self.b0)
        return F.conv2d(padded, self.scale * self.mask, self.bias, groups=self.bias.shape[0])


class EDBB(nn.Module):
    """EFDN's edge-enhanced diverse branch block, in either form, and its PReLU.

    Deploy form: one ``rep_conv``. Training form: that convolution plus a 1x1 and three 1x1s behind which fixed Sobel
    and Laplacian filters stand.
    """

    deploy_key = "rep_conv"

    def __init__(self, in_channels: int, out_channels: int, *, training_form: bool) -> None:
        super().__init__()
        self.rep_conv = same_conv(in_channels, out_channels)
        self.branches = ("conv1x1", *EDGES) if training_form else ()
        if training_form:
            self.conv1x1 = nn.Conv2d(in_channels, out_channels, 1)
            for name, edge_filter in EDGES.items():
                self.add_module(name, EdgeBranch(in_channels, out_channels, edge_filter))
        self.act = nn.PReLU(out_channels)

    def linear(self, x: Tensor) -> Tensor:
        """The sum of the branches."""
        out: Tensor = self.rep_conv(x)
        for name in self.branches:
            out = out + self.get_submodule(name)(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.linear(x))
        return activated


class RFDB(nn.Module):
    """RFDN's block: three times a 1x1 distils some channels while a residual convolution carries on; all are joined.

    conv: makes the convolution of stage 1, 2 or 3, from the stage and the channels. last: the fourth stage's, to the
    distilled channels. Subclasses say how the joined features are attended to.
    """

    def __init__(
        self,
        channels: int,
        distilled: int,
        *,
        conv: Callable[[int, int], nn.Module],
        last: nn.Module,
        activation: Activation,
    ) -> None:
        super().__init__()
        for i in range(1, RFDB_DISTILLATIONS + 1):
            self.add_module(f"c{i}_d", nn.Conv2d(channels, distilled, 1))
            self.add_module(f"c{i}_r", conv(i, channels))
        self.c4 = last
        self.c5 = nn.Conv2d((RFDB_DISTILLATIONS + 1) * distilled, channels, 1)
        self.activation = activation

    def joined(self, x: Tensor) -> Tensor:
        """The features behind the 1x1 that joins what was distilled."""
        rest, kept = x, []
        for i in range(1, RFDB_DISTILLATIONS + 1):
            kept.append(self.activation(self.get_submodule(f"c{i}_d")(rest)))
            rest = self.activation(self.get_submodule(f"c{i}_r")(rest) + rest)
        kept.append(self.activation(self.c4(rest)))
        out: Tensor = self.c5(torch.cat(kept, 1))
        return out


class ResidualChain(nn.Module):
    """RLFN's outline: a convolution, blocks in a chain, a convolution, the first one's features added, pixel shuffle.

    Keys: ``conv_1``, ``block_1..``, ``conv_2``, ``upsampler``.
    """

    def __init__(self, head: nn.Module, blocks: Sequence[nn.Module], end: nn.Module, upsampler: nn.Module) -> None:
        super().__init__()
        self.blocks = len(blocks)
        self.conv_1 = head
        for i, block in enumerate(blocks, 1):
            self.add_module(f"block_{i}", block)
        self.conv_2 = end
        self.upsampler = upsampler

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(x)
        deep = in_turn(numbered(self, "block_{}", self.blocks), shallow)[-1]
        upscaled: Tensor = self.upsampler(self.conv_2(deep) + shallow)
        return upscaled


class JoinedChain(nn.Module):
    """RFDN's outline: a convolution, blocks in a chain whose outputs a 1x1 joins, a convolution, the first one's
    features added, pixel shuffle.

    Keys: ``fea_conv``, ``B1..``, ``c.0``, ``LR_conv``, ``upsampler``.
    """

    def __init__(
        self, head: nn.Module, blocks: Sequence[nn.Module], joint: nn.Module, end: nn.Module, upsampler: nn.Module
    ) -> None:
        super().__init__()
        self.blocks = len(blocks)
        self.fea_conv = head
        for i, block in enumerate(blocks, 1):
            self.add_module(f"B{i}", block)
        self.c = joint
        self.LR_conv = end
        self.upsampler = upsampler

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.fea_conv(x)
        outputs = in_turn(numbered(self, "B{}", self.blocks), shallow)
        upscaled: Tensor = self.upsampler(self.LR_conv(self.c(torch.cat(outputs, 1))) + shallow)
        return upscaled
