"""ECAS: NTIRE 2025 efficient SR, team AIOT_AI ("Efficient channel attention acting on space").

SPAN with 40 channels, a gated channel transform (Yang et al., CVPR 2020) behind each of its blocks' convolutions, and
efficient channel attention (Wang et al., CVPR 2020) where the blocks are joined. Both sum over the whole image.

There is one form: the convolutions were trained as SPAN's, but only their folded weights are published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import EvalConv, Normalise, same_conv, shuffle_tail, symmetric_attention
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail

EPSILON = 1e-5


class GCT(nn.Module):
    """Channels gated by how their energy over the image compares with the others'. Keys: ``alpha, gamma, beta``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        energy = ((x * x).sum((2, 3), keepdim=True) + EPSILON).sqrt() * self.alpha
        norm = self.gamma / ((energy * energy).mean(1, keepdim=True) + EPSILON).sqrt()
        return x * (1 + torch.tanh(energy * norm + self.beta))


class EARB(nn.Module):
    """SPAN's block, each convolution's output gated by a channel transform."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (EvalConv(channels, channels) for _ in range(3))
        self.gct1, self.gct2, self.gct3 = (GCT(channels) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its first convolution's, not gated."""
        first: Tensor = self.c1_r(x)
        out = self.c2_r(F.silu(self.gct1(first)))
        out = self.gct3(self.c3_r(F.silu(self.gct2(out))))
        return symmetric_attention(out, x), first


class ECAS(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    eca_kernel: how many neighbouring channels decide on one, of the four joined feature maps.
    """

    def __init__(self, *, channels: int = 40, blocks: int = 6, scale: int = 4, eca_kernel: int = 5) -> None:
        super().__init__()
        self.blocks = blocks
        self.normalise = Normalise(1.0)
        self.conv_1 = EvalConv(3, channels)
        for i in range(blocks):
            self.add_module(f"block_{i + 1}", EARB(channels))
        self.conv_cat = same_conv(4 * channels, channels, 1)
        self.conv = nn.Conv1d(1, 1, eca_kernel, padding=eca_kernel // 2, bias=False)
        self.conv_2 = EvalConv(channels, channels)
        self.upsampler = shuffle_tail(same_conv(channels, 3 * scale**2), scale)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_1(self.normalise(x))
        out, outputs, first = shallow, [], shallow
        for i in range(1, self.blocks + 1):
            out, first = self.get_submodule(f"block_{i}")(out)
            outputs.append(out)
        joined = torch.cat([shallow, self.conv_2(out), outputs[0], first], 1)
        neighbours = self.conv(joined.mean((2, 3)).unsqueeze(1))
        attention = torch.sigmoid(neighbours).transpose(1, 2).unsqueeze(3)
        upscaled: Tensor = self.upsampler(self.conv_cat(joined + joined * attention))
        return upscaled


def build(shapes: Shapes) -> Architecture:
    """An ECAS of the widths, depth and scale that the shapes tell."""
    scale = scale_of_tail(shapes["upsampler.0.weight"][0])
    module = ECAS(
        channels=shapes["conv_1.eval_conv.weight"][0],
        blocks=count_numbered(shapes, "block_{}."),
        scale=scale,
        eca_kernel=shapes["conv.weight"][-1],
    )
    return Architecture(module, scale, "deploy")


def reference() -> ECAS:
    """AIOT_AI's, 2025."""
    return ECAS()
