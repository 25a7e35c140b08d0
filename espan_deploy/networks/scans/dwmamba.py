"""DWMamba (NTIRE 2026, team WMESR): MambaIRv2's layers on a Haar wavelet's low band, convolutions on the high.

The three high bands are mixed by weights computed from their means (SKFF, Zamir et al., ECCV 2020), guide the sorting
and the scan of the low band, and are refined by its result before the bands are joined again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.scans.mambairv2 import AttentiveLayer, AttentiveScan, Mirrored, Router, WindowAttention
from espan_deploy.networks.swinir import ConvFFN

BANDS = 3


def haar(x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The low band, and the high bands: of columns, of rows, of both. Each has half of the rows and columns."""
    top, bottom = x[:, :, ::2] / 2, x[:, :, 1::2] / 2
    a, b, c, d = top[..., ::2], bottom[..., ::2], top[..., 1::2], bottom[..., 1::2]
    return a + b + c + d, [c + d - a - b, b + d - a - c, a + d - b - c]


def haar_inverse(low: Tensor, high: Tensor) -> Tensor:
    """The image of a low band and the three high ones, one after another in the channels."""
    _, channels, height, width = low.shape
    columns, rows, both = (high[:, i * channels : (i + 1) * channels] for i in range(BANDS))
    pixels = [low - columns - rows + both, low + columns - rows - both]
    pixels += [low - columns + rows - both, low + columns + rows + both]
    cells = torch.stack(pixels, 2).reshape(-1, channels, 2, 2, height, width) / 2
    return cells.permute(0, 1, 4, 2, 5, 3).reshape(-1, channels, 2 * height, 2 * width)


class SelectiveFusion(nn.Module):
    """The sum of bands, each channel of each with a weight computed from the means."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(nn.Conv2d(channels, mid_channels, 1, bias=False), nn.PReLU())
        self.fcs = nn.ModuleList(nn.Conv2d(mid_channels, channels, 1, bias=False) for _ in range(BANDS))

    def forward(self, bands: list[Tensor]) -> Tensor:
        stacked = torch.stack(bands, 1)
        mean = self.conv_du(stacked.sum(1).mean((2, 3), keepdim=True))
        weights = torch.stack([fc(mean) for fc in self.fcs], 1).softmax(1)
        return (stacked * weights).sum(1)


class SqueezeExcitation(nn.Module):
    """Channels weighted by what two linear layers make of their means."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, mid_channels, bias=False),
            nn.ReLU(),
            nn.Linear(mid_channels, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.fc(x.mean((2, 3)))
        return x * weights[:, :, None, None]


class HighBranch(nn.Module):
    """A depthwise 3x3, GELU, a 1x1 and squeeze and excitation, scaled by channel and added."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.se = SqueezeExcitation(channels, mid_channels)
        self.res_scale = nn.Parameter(torch.full((1, channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.se(self.conv2(F.gelu(self.conv1(x)))) * self.res_scale + x
        return out


class Interaction(nn.Module):
    """The high bands gated by the low one, and a 3x3 of both."""

    def __init__(self, channels: int, high: int) -> None:
        super().__init__()
        self.struct_conv = nn.Conv2d(channels, high, 1)
        self.fusion = nn.Conv2d(2 * high, high, 3, padding=1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        structure = self.struct_conv(low)
        out: Tensor = high * torch.sigmoid(structure) + self.fusion(torch.cat([high, structure], 1))
        return out


class GuidedScan(AttentiveScan):
    """An attentive scan whose prompts and gates look at the high bands too, and whose prompts are sorted as well."""

    def __init__(
        self, channels: int, *, inner: int, state: int, rank: int, prompts: tuple[int, int], high: int
    ) -> None:
        super().__init__(channels, inner, state, rank, prompts)
        self.route = Router(2 * channels, prompts[0])
        self.cpe_hf_proj = nn.Conv2d(high, inner, 1)
        self.hf_align = nn.Sequential(
            nn.Conv2d(high, high, 3, padding=1, groups=high), nn.SiLU(), nn.Conv2d(high, channels, 1)
        )
        self.hf_gate_route = nn.Parameter(torch.zeros(channels))
        self.hf_gate_cpe = nn.Parameter(torch.zeros(1, inner, 1, 1))

    def forward(self, x: Tensor, factor: Tensor, *beside: Tensor) -> Tensor:
        (high,) = beside
        scores = self.route(torch.cat([x, self.hf_align(high) * self.hf_gate_route[:, None, None]], 1))
        features = self.in_proj(x)
        gate = self.CPE(features) + self.cpe_hf_proj(high) * self.hf_gate_cpe
        return self.in_order_of(scores, features * torch.sigmoid(gate), factor, sorted_prompts=True)


class WaveletLayer(nn.Module):
    """A layer of MambaIRv2 on the low band, convolutions on the high ones."""

    def __init__(self, low: AttentiveLayer, channels: int, high: int, fusion: int, squeezed: int) -> None:
        super().__init__()
        self.ll_branch = low
        self.skff = SelectiveFusion(channels, fusion)
        self.hf_compress = nn.Conv2d(channels, high, 1)
        self.hf_branch = HighBranch(high, squeezed)
        self.cfi = Interaction(channels, high)
        self.expand_conv = nn.Conv2d(high, BANDS * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, bands = haar(x)
        high = self.hf_branch(self.hf_compress(self.skff(bands)))
        low = self.ll_branch(low, high)
        return haar_inverse(low, self.expand_conv(self.cfi(low, high)))


class Group(nn.Module):
    """Layers, a 3x3 convolution, and the group's input added."""

    def __init__(self, layers: Sequence[nn.Module], channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.layers(x)) + x
        return out


def dwmamba(
    *,
    channels: int = 48,
    heads: int = 4,
    window: int = 16,
    hidden: int = 96,
    inner: int = 96,
    state: int = 8,
    rank: int = 6,
    prompts: tuple[int, int] = (64, 32),
    high: int = 12,
    fusion: int = 6,
    squeezed: int = 3,
    depths: Sequence[int] = (2, 2, 2, 2),
    scale: int = 4,
) -> Mirrored:
    """DWMamba. high: channels of the high bands together. fusion, squeezed: in the middle of what weighs channels."""

    def layer(i: int) -> nn.Module:
        scan = GuidedScan(channels, inner=inner, state=state, rank=rank, prompts=prompts, high=high)
        attention = WindowAttention(channels, heads, window, i % 2 * window // 2)
        low = AttentiveLayer(channels, attention, scan, (prompts[1], state), lambda: ConvFFN(channels, hidden))
        return WaveletLayer(low, channels, high, fusion, squeezed)

    frame = Mirrored((Group([layer(i) for i in range(depth)], channels) for depth in depths), channels, scale)
    frame.multiple, frame.scale = 2 * window, scale
    return frame


def build(shapes: Shapes) -> Architecture:
    """A DWMamba of the widths, depths, windows and scale that the shapes tell."""
    layer = "layers.0.layers.0"
    low = f"{layer}.ll_branch"
    offsets, heads = shapes[f"{low}.win_mhsa.relative_position_bias_table"]
    _, inner, rank = shapes[f"{low}.assm.selectiveScan.dt_projs_weight"]
    hidden, channels = shapes[f"{low}.convffn1.fc1.weight"]
    prompts, prompt_rank = shapes[f"{low}.assm.embeddingB.weight"]
    scale = scale_of_tail(shapes["upsample.0.weight"][0])
    module = dwmamba(
        channels=channels,
        heads=heads,
        window=(round(offsets**0.5) + 1) // 2,
        hidden=hidden,
        inner=inner,
        state=shapes[f"{low}.assm.selectiveScan.A_logs"][1],
        rank=rank,
        prompts=(prompts, prompt_rank),
        high=shapes[f"{layer}.hf_compress.weight"][0],
        fusion=shapes[f"{layer}.skff.conv_du.0.weight"][0],
        squeezed=shapes[f"{layer}.hf_branch.se.fc.0.weight"][0],
        depths=[
            count_numbered(shapes, f"layers.{i}.layers." + "{}.", first=0)
            for i in range(count_numbered(shapes, "layers.{}.", first=0))
        ],
        scale=scale,
    )
    return Architecture(module, scale, "deploy", redundant=frozenset({"relative_position_index_SA"}))
