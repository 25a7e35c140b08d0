"""SPANMamba (NTIRE 2026, team CUIT HTT): SPAN's blocks with a gate that Mamba computes in place of symmetric attention.

Gates are trained from zero, where the scan does not reach the output. Training form: the 3x3 convolutions are
:class:`~espan_deploy.networks.blocks.Conv3XC`, and checkpoints hold what they fold to beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import Conv, EvalConv, Normalise, conv_form, shuffle_tail, stale_keys
from espan_deploy.networks.entry import Architecture, Shapes, conv_shape, count_numbered, scale_of_tail
from espan_deploy.networks.scans.blocks import FIRST_STEP, selective_scan


class Mamba(nn.Module):
    """Mamba's block over a sequence: a causal convolution, SiLU, the selective scan, a gate. Keys as in mamba_ssm."""

    def __init__(self, channels: int, inner: int, state: int, rank: int, kernel_size: int = 4) -> None:
        super().__init__()
        self.inner, self.rank, self.state = inner, rank, state
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel_size, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)
        nn.init.constant_(self.dt_proj.bias, FIRST_STEP)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, C) -> (N, L, C)."""
        projected = self.in_proj(x)
        sequence, gate = projected[..., : self.inner].transpose(1, 2), projected[..., self.inner :]
        before = self.conv1d.kernel_size[0] - 1
        sequence = F.silu(self.conv1d(F.pad(sequence, (before, 0))))
        selected = self.x_proj(sequence.transpose(1, 2))
        step = F.softplus(self.dt_proj(selected[..., : self.rank])).transpose(1, 2)
        write = selected[..., self.rank : self.rank + self.state].transpose(1, 2)
        read = selected[..., self.rank + self.state :].transpose(1, 2)
        rate = -torch.exp(self.A_log)
        # One group: the scan takes several side by side.
        y = selective_scan(sequence[:, None], step[:, None], rate[None], write[:, None], read[:, None])[:, 0]
        y = (y + self.D[:, None] * sequence).transpose(1, 2)
        out: Tensor = self.out_proj(y * F.silu(gate))
        return out


class Gate(nn.Module):
    """A gate in [-1/2, 1/2] for each value, from a scan over all pixels, row by row."""

    def __init__(self, channels: int, width: int, inner: int, state: int, rank: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv2d(channels, width, 1)
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width, inner, state, rank)
        self.out_proj = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.out_proj.weight)
        assert self.out_proj.bias is not None
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y = self.in_proj(x)
        tokens = self.mamba(self.norm(y.flatten(2).transpose(1, 2)))
        scanned = tokens.transpose(1, 2).reshape(-1, y.shape[1], height, width)
        return torch.sigmoid(self.out_proj(scanned)) - 0.5


class Block(nn.Module):
    """Three convolutions with SiLU between them, the block's input, and the gate."""

    def __init__(self, conv: Conv, channels: int, gate: Gate) -> None:
        super().__init__()
        for i in (1, 2, 3):
            self.add_module(f"c{i}_r", conv(channels, channels))
        self.mamba_gate = gate

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in (1, 2, 3):
            out = self.get_submodule(f"c{i}_r")(F.silu(out) if i > 1 else out)
        joined: Tensor = out + x
        gated: Tensor = joined + joined * self.mamba_gate(out)
        return gated


class SPANMamba(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped."""

    def __init__(
        self,
        *,
        channels: int = 48,
        width: int = 48,
        inner: int = 96,
        state: int = 16,
        rank: int = 3,
        blocks: int = 6,
        scale: int = 4,
        conv: Conv = EvalConv,
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.normalise = Normalise(1.0)
        self.conv_1 = conv(3, channels)
        for i in range(blocks):
            self.add_module(f"block_{i + 1}", Block(conv, channels, Gate(channels, width, inner, state, rank)))
        self.conv_cat = nn.Conv2d(4 * channels, channels, 1)
        self.conv_2 = conv(channels, channels)
        self.upsampler = shuffle_tail(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(self.normalise(x))
        outputs = [shallow]
        for i in range(1, self.blocks + 1):
            outputs.append(self.get_submodule(f"block_{i}")(outputs[-1]))
        joined = torch.cat([shallow, self.conv_2(outputs[-1]), outputs[1], outputs[-2]], 1)
        upscaled: Tensor = self.upsampler(self.conv_cat(joined))
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """A SPANMamba of the widths, depth, scale and form that the shapes tell."""
    conv, form = conv_form(shapes, "conv_1")
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    gate = "block_1.mamba_gate"
    inner, rank = shapes[f"{gate}.mamba.dt_proj.weight"]
    module = SPANMamba(
        channels=conv_shape(shapes, "conv_1")[0],
        width=shapes[f"{gate}.in_proj.weight"][0],
        inner=inner,
        state=shapes[f"{gate}.mamba.A_log"][1],
        rank=rank,
        blocks=count_numbered(shapes, "block_{}."),
        scale=scale,
        conv=conv,
    )
    return Architecture(module, scale, form, redundant=stale_keys(shapes))


def reference() -> SPANMamba:
    """CUIT HTT's, 2026."""
    return SPANMamba()
