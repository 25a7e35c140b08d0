"""ESPAN as it is trained: with extra teacher blocks, with or without the student's own tail.

The names of the final network are the teacher's (``teacher_block_seq``, ``tea_*``), for it is the teacher that stays
after its extra blocks were removed. Teacher and student share the head and the five blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import SPAB, symmetric_attention
from espan_deploy.networks.span.espan import ESPAN, RepConv
from training.merge import Kernel, bias_of, branch_parameters, merged_kernels, rep_convs

CHANNELS = 32
BLOCKS = 5
GROWTH = 1.5
"""INT8 has one range for all pictures: photographs' values that text outgrows by far are left with few codes."""


class StudentTail(nn.Module):
    """The tail behind the shared backbone, with the layers of the teacher's."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.conv_cat = nn.Conv2d(4 * CHANNELS, CHANNELS, 1)
        self.conv_2 = RepConv(CHANNELS, CHANNELS)
        self.upsampler = RepConv(CHANNELS, 3 * scale**2)


class TrainingNetwork(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], any dtype.

    Returns the teacher's and the student's (None without one) images in sub-pixel layout, (N, 3 * scale**2, H, W) in
    x's dtype: what the pixel shuffle gets. Without extra blocks the teacher is ``espan``, the final network.

    branches: what :meth:`freeze_branches` made of the branches' weights; None while they learn.
    excess: with ``limited``, of the last call, see :func:`excess_of`; nothing without.
    """

    def __init__(self, *, scale: int, extra_blocks: int = 0, student: bool = False, limited: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.limited = limited
        self.excess = torch.zeros(())
        self.espan = ESPAN(scale=scale, training_form=True)
        self.extra = nn.ModuleList(SPAB(RepConv, CHANNELS) for _ in range(extra_blocks))
        self.student = StudentTail(scale) if student else None
        self.branches: dict[str, Kernel] | None = None
        self._run: Callable[[dict[str, Kernel], Tensor], tuple[Tensor, Tensor | None, list[Tensor]]] = self._noted_run
        self._excess_of = excess_of

    @torch.no_grad()
    def freeze_branches(self) -> None:
        """Let only the kxk (and what has no branches) learn: every position's 1x1 and chains are merged once.

        The function stays, and so does the gradient of a kxk. Weights loaded afterwards need another call.
        """
        convs = rep_convs(self)
        self.branches = {
            name: (weight - convs[name].kxk.weight, bias - bias_of(convs[name].kxk))
            for name, (weight, bias) in merged_kernels(self).items()
        }
        for parameter in branch_parameters(self):
            parameter.requires_grad_(False)

    def kernels(self) -> dict[str, Kernel]:
        """One kernel per position, in the parameters' dtype."""
        if self.branches is None:
            return merged_kernels(self)
        convs = rep_convs(self)
        return {
            name: (weight + convs[name].kxk.weight, bias + bias_of(convs[name].kxk))
            for name, (weight, bias) in self.branches.items()
        }

    def compile_run(self) -> None:
        """Compile :meth:`run`, anew for each shape of crops: on a CPU, activations are computed in one pass.

        The excess is a graph apart: in one with the network it takes a quarter of an iteration's time.
        """
        self._run = torch.compile(self._noted_run, dynamic=False)
        self._excess_of = torch.compile(excess_of, dynamic=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Merge, then run the merged convolutions in x's dtype; merging stays in the parameters' dtype."""
        kernels = {name: (weight.to(x.dtype), bias.to(x.dtype)) for name, (weight, bias) in self.kernels().items()}
        teacher, student, noted = self._run(kernels, x)
        if self.limited:
            self.excess = self._excess_of(noted)
        return teacher, student

    def _noted_run(self, kernels: dict[str, Kernel], x: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        noted: list[Tensor] = []
        teacher, student = self.run(kernels, x, noted if self.limited else None)
        return teacher, student, noted

    def image(self, x: Tensor) -> Tensor:
        """The teacher's image, (N, 3, scale * H, scale * W)."""
        return F.pixel_shuffle(self(x)[0], self.scale)

    def run(
        self, kernels: dict[str, Kernel], x: Tensor, noted: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Forward with kernels of one's own making, one per position, such as those of :func:`merged_kernels`.

        noted: gets every feature map that a convolution with a kernel of them reads.
        """

        def conv(name: str, x: Tensor) -> Tensor:
            if noted is not None:
                noted.append(x)
            weight, bias = kernels[name]
            return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

        def block(name: str, x: Tensor, depth: int = 3) -> Tensor:
            out = conv(f"{name}.c1_r", x)
            for i in range(1, depth):
                out = conv(f"{name}.c{i + 1}_r", F.silu(out))
            return symmetric_attention(out, x)

        shallow = conv("espan.conv_1", x)
        first = out = block("espan.block_1", shallow)
        for i in range(1, BLOCKS):
            out = block(f"espan.block_{i + 1}", out)
        student = None
        if self.student is not None:
            fused = _fuse(self.student.conv_cat, shallow, conv("student.conv_2", out), first, out)
            student = conv("student.upsampler", fused)
        for i in range(len(self.extra)):
            out = block(f"extra.{i}", out)
        last = block("espan.teacher_block_seq", out, depth=2)
        fused = _fuse(self.espan.tea_conv_cat, shallow, conv("espan.tea_conv_2", last), first, last)
        return conv("espan.tea_upsampler.0", fused), student


def excess_of(maps: list[Tensor]) -> Tensor:
    """How far (N, C, H, W) feature maps grow on single crops beyond what most crops make of them; a sum of means.

    What is more than ``GROWTH`` times the median crop's largest magnitude counts, in units of that.
    """
    total = maps[0].new_zeros(())
    for each in maps:
        with torch.no_grad():  # compiled, the largest magnitude takes a dozen times as long as these two
            peaks = torch.maximum(each.amax((1, 2, 3)), -each.amin((1, 2, 3)))
            limit = GROWTH * peaks.median() + 1e-6
        total = total + F.relu(each.abs() / limit - 1).mean()
    return total


def _fuse(layer: nn.Conv2d, *parts: Tensor) -> Tensor:
    """A 1x1 convolution of concatenated maps without concatenating them (that copy is slow on a CPU)."""
    weights = torch.split(layer.weight.to(parts[0].dtype), CHANNELS, 1)
    assert layer.bias is not None
    out = F.conv2d(parts[0], weights[0], layer.bias.to(parts[0].dtype))
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        out = out + F.conv2d(part, weight)
    return out


@torch.no_grad()
def to_scale(state: dict[str, Tensor], source: int, target: int) -> dict[str, Tensor]:
    """A state dict's upsamplers, grown from one scale to a multiple of it: a sub-pixel becomes a square of equals."""
    ratio = target // source
    rows = torch.tensor(
        [
            colour * source**2 + (i // ratio) * source + j // ratio
            for colour in range(3)
            for i in range(target)
            for j in range(target)
        ]
    )

    def grow(name: str, value: Tensor) -> Tensor:
        if "upsampler" not in name:
            return value
        if ".chains." in name and name.endswith("1.weight"):  # its input is the grown output of the chain's 1x1
            return value[rows][:, rows] / ratio**2
        return value[rows]

    return {name: grow(name, value) for name, value in state.items()}
