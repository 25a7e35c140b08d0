"""SCMSR (NTIRE 2025, team SCMSR): some windows are attended to, the others only weighted.

After Wang et al., "CAMixerSR: Only Details Need More Attention", CVPR 2024, with SPAN's symmetric attention in place of
self-attention, which looks at one pixel at a time. A predictor scores each window of 16.

The entrants draw Gumbel noise to decide, count the windows chosen in the whole batch, then sort each image's windows
and take as many. Without noise the windows taken are those whose own first score is the higher, and that is what this
network computes: nothing is sorted, and an image's result does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.blocks import shuffle_tail
from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.swinir import ChannelLinear, ChannelNorm
from espan_deploy.networks.windows.blocks import halves, map_of, mirrored, windows_of

LARGEST_OFFSET = 8.0
"""Pixels, in each direction, that a pixel's key may be taken from."""


def warped(x: Tensor, offsets: Tensor) -> Tensor:
    """An (N, C, H, W) map read at each pixel's place plus its offset, (N, 2, H, W) to the right and down, in pixels.

    Bilinear; places outside are moved to the border.
    """
    places = []
    for axis, offset in ((3, offsets[:, 0]), (2, offsets[:, 1])):
        position = torch.arange(x.shape[axis], device=x.device, dtype=x.dtype)
        if axis == 2:
            position = position[:, None]
        # Tensors, as the exporter takes no computed number for an operand.
        last = torch.full((1,), x.shape[axis] - 1, device=x.device, dtype=x.dtype)
        places.append((position + offset) * (2 / last) - 1)
    return F.grid_sample(x, torch.stack(places, 3), mode="bilinear", padding_mode="border", align_corners=True)


class Predictor(nn.Module):
    """Which windows to attend to, where keys are read, and a weight for each channel and each pixel."""

    place: Tensor

    def __init__(self, channels: int, conditions: int, window: int) -> None:
        super().__init__()
        self.window = window
        width = (channels + conditions) // 4
        self.in_conv = nn.Sequential(
            nn.Conv2d(channels + conditions, width, 1), ChannelNorm(width, eps=1e-6), nn.LeakyReLU(0.1)
        )
        self.out_offsets = nn.Sequential(
            nn.Conv2d(width, (channels + conditions) // 8, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d((channels + conditions) // 8, 2, 1),
        )
        self.out_mask = nn.Sequential(nn.Linear(window**2, window), nn.LeakyReLU(0.1), nn.Linear(window, 2))
        self.out_CA = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, channels, 1), nn.Sigmoid())
        self.out_SA = nn.Sequential(nn.Conv2d(width, 1, 3, padding=1), nn.Sigmoid())
        step = torch.linspace(-1, 1, window)
        place = torch.stack(torch.meshgrid(step, step, indexing="ij"))
        self.register_buffer("place", place[None, :, None, :, None], persistent=False)

    def forward(self, features: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 1, H, W) 1 in windows to attend to, else 0; (N, 2, H, W) offsets; weights of channels; of pixels."""
        number, _, height, width = features.shape
        rows, columns = height // self.window, width // self.window
        place = self.place.expand(number, -1, rows, -1, columns, -1).reshape(number, 2, height, width)
        x = self.in_conv(torch.cat([features, condition, place], 1))
        offsets = LARGEST_OFFSET * torch.tanh(self.out_offsets(x))
        scores = self.out_mask(windows_of(x.mean(1, keepdim=True), self.window))
        chosen = (scores[..., :1] >= scores[..., 1:]).to(x.dtype).expand(-1, -1, self.window**2)
        return map_of(chosen, self.window, height, width), offsets, self.out_CA(x), self.out_SA(x)


class Mixer(nn.Module):
    """Symmetric attention in the windows chosen, a weight for each pixel in the others, then two depthwise 3x3."""

    def __init__(self, channels: int, conditions: int, window: int) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(channels, channels, 1)
        self.c2_r = nn.Conv2d(channels, channels, 1)
        self.project_qk = ChannelLinear(channels, channels)
        self.conv_sptial = nn.Sequential(  # the entrants' spelling
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=channels),
        )
        self.project_out = nn.Conv2d(channels, channels, 1)
        self.route = Predictor(channels, conditions + 2, window)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        first = F.silu(self.c1_r(x))
        value = self.c2_r(first)
        chosen, offsets, channel_weight, pixel_weight = self.route(value, condition)
        key = self.project_qk(first + warped(x, offsets))
        attended = (value + x) * (torch.sigmoid(key) - 0.5)
        mixed = torch.where(chosen > 0, attended, value * pixel_weight)
        out: Tensor = self.project_out(F.gelu(self.conv_sptial(mixed)) * channel_weight + mixed)
        return out


class GatedUnit(nn.Module):
    """Half of the features, each with its neighbourhood, times the other half as gates; the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gates, values = halves(self.proj(x))
        out: Tensor = self.dwconv(values) * F.silu(gates) + x
        return out


class Block(nn.Module):
    """Mixer and gated unit, each with its input added and then normalised."""

    def __init__(self, channels: int, conditions: int, window: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels, eps=1e-6)
        self.mixer = Mixer(channels, conditions, window)
        self.norm2 = ChannelNorm(channels, eps=1e-6)
        self.ffn = GatedUnit(channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.norm1(x + self.mixer(x, condition))
        out: Tensor = self.norm2(x + self.ffn(x))
        return out


class Group(nn.Module):
    """Blocks, a 1x1 convolution, and the group's input added."""

    def __init__(self, blocks: Sequence[Block], channels: int) -> None:
        super().__init__()
        self.body = nn.ModuleList(blocks)
        self.body_tail = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        out = x
        for block in self.body:
            out = block(out, condition)
        joined: Tensor = self.body_tail(out) + x
        return joined


class SCMSR(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1]. Returns (N, 3, scale * H, scale * W), not clipped.

    depths: blocks of each group. predicted: widths of the two convolutions that predict a condition for all blocks.
    """

    def __init__(
        self,
        *,
        channels: int = 42,
        depths: Sequence[int] = (4, 4, 6, 6),
        window: int = 16,
        predicted: tuple[int, int] = (8, 2),
        scale: int = 4,
    ) -> None:
        super().__init__()
        self.window, self.scale = window, scale
        hidden, conditions = predicted
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.global_predictor = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(hidden, conditions, 3, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.body = nn.ModuleList(
            Group([Block(channels, conditions, window) for _ in range(depth)], channels) for depth in depths
        )
        self.body_tail = nn.Conv2d(channels, channels, 3, padding=1)
        self.tail = shuffle_tail(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), scale)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        shallow = self.head(mirrored(x, self.window))
        condition = self.global_predictor(shallow)
        deep = shallow
        for group in self.body:
            deep = group(deep, condition)
        upscaled: Tensor = self.tail(self.body_tail(deep) + shallow)
        return upscaled[:, :, : self.scale * height, : self.scale * width]


def build(shapes: Shapes) -> Architecture:
    """An SCMSR of the widths, depths, window and scale that the shapes tell."""
    groups = count_numbered(shapes, "body.{}.", first=0)
    scale = scale_of_tail(shapes["tail.0.weight"][0])
    module = SCMSR(
        channels=shapes["head.weight"][0],
        depths=[count_numbered(shapes, f"body.{i}.body." + "{}.", first=0) for i in range(groups)],
        window=shapes["body.0.body.0.mixer.route.out_mask.0.weight"][0],
        predicted=(shapes["global_predictor.0.weight"][0], shapes["global_predictor.2.weight"][0]),
        scale=scale,
    )
    return Architecture(module, scale, "deploy")


def reference() -> SCMSR:
    """SCMSR's, 2025."""
    return SCMSR()
