"""Blocks that several networks share, in the deploy form and in the training form.

Every feature map is (N, C, H, W), float. Padding is zero, and always "same".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REP_CHAINS = 4
"""1x1-kxk branches of one general re-parameterised convolution (ESPAN factsheet, fig. 1)."""


class EvalConv(nn.Module):
    """A convolution in deploy form: one ``eval_conv``, the name most challenge checkpoints give it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        self.eval_conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.eval_conv(x)
        return out


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


def symmetric_attention(features: Tensor, shortcut: Tensor) -> Tensor:
    """SPAN's parameter-free attention, ``(o + x) * (sigmoid(o) - 1/2)`` (Wan et al., CVPR workshops 2024)."""
    return (features + shortcut) * (torch.sigmoid(features) - 0.5)
