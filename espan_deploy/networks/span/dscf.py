"""DSCF (NTIRE 2025, team EMSR) and DSCF_Fused (NTIRE 2026, team VARH-AI): SPAN with 26 channels.

DSCF is SPAN's graph, fine-tuned through low-rank updates of its convolutions. Training form: the convolutions that
were updated are :class:`~espan_deploy.networks.blocks.LoRAConv`, with the entrants' keys beside ``eval_conv.weight``.

DSCF_Fused merges the head with the first block's first convolution into a 5x5, and ``conv_2`` with its share of
``conv_cat`` into a 3x3. At the image's border the former is an approximation: that is the network as trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espan_deploy.networks.blocks import SPAB, EvalConv, LoRAConv, Normalise, shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.span.span import SPAN
from espan_deploy.networks.span.span import build as build_span


class HeadlessSPAB(SPAB):
    """A SPAB whose first convolution is computed elsewhere."""

    def __init__(self, channels: int) -> None:
        super().__init__(EvalConv, channels)
        del self.c1_r


class DSCFFused(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(self, *, channels: int = 26, blocks: int = 6, scale: int = 4) -> None:
        super().__init__()
        self.blocks = blocks
        self.normalise = Normalise()
        self.conv_1 = EvalConv(3, channels)
        self.conv_fused = nn.Conv2d(3, channels, 5, padding=2)
        self.block_1 = HeadlessSPAB(channels)
        for i in range(1, blocks):
            self.add_module(f"block_{i + 1}", SPAB(EvalConv, channels))
        self.conv_cat_other = nn.Conv2d(3 * channels, channels, 1)
        self.conv2_fused = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.upsampler = shuffle_tail(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        shallow = self.conv_1(x)
        inner = nn.functional.silu(self.conv_fused(x))
        first = out = self.block_1.after_first(shallow, inner)
        for i in range(2, self.blocks + 1):
            block = self.get_submodule(f"block_{i}")
            assert isinstance(block, SPAB)
            out, inner = block.with_first(out)
        fused = self.conv_cat_other(torch.cat([shallow, first, inner], 1)) + self.conv2_fused(out)
        upscaled: Tensor = self.upsampler(fused)
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A DSCF or DSCF_Fused of the widths, depth, scale and form that the shapes tell."""
    if "conv_fused.weight" in shapes:
        scale = scale_of_tail(shapes["upsampler.0.weight"][0])
        blocks = count_numbered(shapes, "block_{}.")
        return Architecture(
            DSCFFused(channels=shapes["conv_fused.weight"][0], blocks=blocks, scale=scale), scale, "deploy"
        )
    span = build_span(shapes)
    updated = [key.removesuffix(".lora_A") for key in shapes if key.endswith(".lora_A")]
    for path in updated:
        out_channels, in_channels, kernel_size, _ = shapes[f"{path}.weight"]
        rank = shapes[f"{path}.lora_A"][0] // kernel_size
        span.module.set_submodule(path, LoRAConv(in_channels, out_channels, kernel_size, rank))
    return Architecture(span.module, span.scale, "training" if updated else span.form, redundant=span.redundant)


def reference() -> SPAN:
    """EMSR's, 2025."""
    return SPAN(channels=26)


def fused() -> DSCFFused:
    """VARH-AI's, 2026."""
    return DSCFFused()
