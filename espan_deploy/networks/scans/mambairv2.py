"""MambaIRv2 (SNUCV's first stage, NTIRE 2025 x4 track) and its light one (NTIRE 2025 efficient SR, team Quantum Res).

Guo et al., "MambaIRv2: Attentive State Space Restoration", CVPR 2025: windows attend, then pixels are sorted by the
prompt that fits each of them best, and scanned in that order. The originals draw Gumbel noise to choose; the network
deployed here takes the prompt of the highest score, so that an image gives the same result twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.entry import Architecture, Shapes, count_numbered, scale_of_tail
from espan_deploy.networks.scans.blocks import SelectiveScan
from espan_deploy.networks.swinir import ChannelLinear, ChannelNorm, ConvFFN, ResidualGroup, SwinFrame
from espan_deploy.networks.windows.blocks import (
    ShiftMask,
    halves,
    heads_of,
    map_of_heads,
    mirrored,
    position_index,
    rolled,
)

FeedForward = Callable[[int, int], nn.Module]
"""Makes the feed-forward part of (channels, hidden channels)."""


class SpatialGate(nn.Module):
    """Half of the features times the other half, normalised and convolved by a depthwise 5x5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels // 2)
        self.conv = nn.Conv2d(channels // 2, channels // 2, 5, padding=2, groups=channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = halves(x)
        out: Tensor = value * self.conv(self.norm(gate))
        return out


class GatedMLP(nn.Module):
    """The light network's feed-forward part."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = ChannelLinear(channels, hidden)
        self.sg = SpatialGate(hidden)
        self.fc2 = ChannelLinear(hidden // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.sg(F.gelu(self.fc1(x))))
        return out


class WindowAttention(nn.Module):
    """Attention in windows, with a bias for each relative position. Takes queries, keys and values side by side."""

    index: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.proj = ChannelLinear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("index", position_index(window, window), persistent=False)
        self.mask = ShiftMask(shift, window, window) if shift else nn.Identity()

    def forward(self, qkv: Tensor) -> Tensor:
        qkv = rolled(qkv, self.shift)
        width = qkv.shape[1] // 3
        query, key, value = (heads_of(qkv[:, i * width : (i + 1) * width], self.heads, self.window) for i in range(3))
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + bias
        attended = map_of_heads(self.mask(scores).softmax(-1) @ value, self.window)
        projected: Tensor = self.proj(rolled(attended, -self.shift))
        return projected


class PromptScan(SelectiveScan):
    """One scan over all pixels, in whatever order, that reads by a prompt too."""

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """x: (N, D, L). prompt: (N, L, S). Returns (N, D, L)."""
        return self.scanned(x[:, None], prompt.transpose(1, 2)[:, None])[:, 0]


class Router(nn.Sequential):
    """The logarithm of how well each prompt fits each pixel, (N, C, H, W) -> (N, prompts, H * W).

    Only the best counts, and the logarithm changes none; but some pixels fit two prompts equally well up to the last
    bits of float32, and then these decide. They are the original's: pixels as rows, and normalised.
    """

    def __init__(self, channels: int, number: int) -> None:
        hidden = channels // 3
        super().__init__(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, number), nn.LogSoftmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        scores = x.flatten(2).transpose(1, 2)
        for layer in self:
            scores = layer(scores)
        return scores.transpose(1, 2)


class AttentiveScan(nn.Module):
    """Pixels sorted by their prompt, stable, and scanned. The prompts stay in the image's order, as in the original."""

    def __init__(self, channels: int, inner: int, state: int, rank: int, prompts: tuple[int, int]) -> None:
        super().__init__()
        number, prompt_rank = prompts
        self.selectiveScan = PromptScan(1, inner, state, rank)
        self.out_norm = ChannelNorm(inner)
        self.out_proj = ChannelLinear(inner, channels)
        self.in_proj = nn.Sequential(nn.Conv2d(channels, inner, 1))
        self.CPE = nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1, groups=inner))
        self.embeddingB = nn.Embedding(number, prompt_rank)
        self.route = Router(channels, number)

    def forward(self, x: Tensor, factor: Tensor, *beside: Tensor) -> Tensor:
        """factor: (rank of a prompt, S), which prompts are multiplied with. beside: what a subclass looks at too."""
        assert not beside, "only a subclass looks at more"
        features = self.in_proj(x)
        features = features * torch.sigmoid(self.CPE(features))
        return self.in_order_of(self.route(x), features, factor, sorted_prompts=False)

    def in_order_of(self, scores: Tensor, features: Tensor, factor: Tensor, *, sorted_prompts: bool) -> Tensor:
        """Scan features (N, D, H, W) in the order of the prompts that score best, (N, prompts, H * W)."""
        height, width = features.shape[2:]
        chosen = scores.argmax(1)
        order = stable_order(chosen)
        position = torch.arange(chosen.shape[1], device=chosen.device)
        place = torch.zeros_like(order).scatter(1, order, position.expand_as(order))
        prompt = (self.embeddingB.weight @ factor)[chosen.gather(1, order) if sorted_prompts else chosen]
        scanned = self.selectiveScan(_taken(features.flatten(2), order), prompt)
        channels = features.shape[1]
        y = _taken(scanned, place).reshape(-1, channels, height, width)
        out: Tensor = self.out_proj(self.out_norm(y))
        return out


def stable_order(numbers: Tensor) -> Tensor:
    """Places (N, L) that sort whole numbers (N, L), equal ones in their own order, in every engine.

    The entrants sort with ``torch.sort(..., stable=False)``, which leaves the order of equal ones to PyTorch.
    """
    position = torch.arange(numbers.shape[1], device=numbers.device)
    # No two keys are equal, so that nothing is left to an engine.
    return torch.argsort(numbers * numbers.shape[1] + position, 1)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """(N, C, L) at places (N, L)."""
    return x.gather(2, places[:, None].expand(-1, x.shape[1], -1))


class AttentiveLayer(nn.Module):
    """Window attention and feed-forward part, then attentive scan and feed-forward part."""

    def __init__(
        self,
        channels: int,
        attention: WindowAttention,
        scan: AttentiveScan,
        prompt_factor: tuple[int, int],
        feed_forward: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        for i in (1, 2, 3, 4):
            self.add_module(f"norm{i}", ChannelNorm(channels))
        for i in (1, 2):
            self.register_parameter(f"scale{i}", nn.Parameter(torch.full((channels,), 1e-4)))
            self.add_module(f"convffn{i}", feed_forward())
        self.wqkv = ChannelLinear(channels, 3 * channels)
        self.win_mhsa = attention
        self.assm = scan
        self.embeddingA = nn.Embedding(*prompt_factor)

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        """beside: what the scan looks at besides its input."""
        part = self.get_submodule
        attended = self.win_mhsa(self.wqkv(part("norm1")(x))) + x
        attended = part("convffn1")(part("norm2")(attended)) + attended
        x = x * self.get_parameter("scale1")[:, None, None] + attended
        scanned = self.assm(part("norm3")(x), self.embeddingA.weight, *beside) + x
        scanned = scanned + part("convffn2")(part("norm4")(scanned))
        out: Tensor = x * self.get_parameter("scale2")[:, None, None] + scanned
        return out


class Mirrored(SwinFrame):
    """A frame that mirrors its image to whole windows, the edge repeated, and cuts the result back."""

    multiple: int
    scale: int

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        upscaled = super().forward(mirrored(x, self.multiple, repeat_edge=True))
        return upscaled[:, :, : self.scale * height, : self.scale * width]


def mambairv2(
    *,
    channels: int = 48,
    heads: int = 4,
    window: int = 16,
    hidden: int = 48,
    inner: int = 48,
    state: int = 8,
    rank: int = 3,
    prompts: tuple[int, int] = (64, 32),
    depths: Sequence[int] = (5, 5, 5, 5),
    scale: int = 4,
    feed_forward: FeedForward = GatedMLP,
    tail_channels: int | None = None,
) -> Mirrored:
    """MambaIRv2, by default Quantum Res's light one.

    prompts: how many there are, and their rank. depths: layers of each group.
    """

    def layer(i: int) -> nn.Module:
        scan = AttentiveScan(channels, inner, state, rank, prompts)
        attention = WindowAttention(channels, heads, window, i % 2 * window // 2)
        parts = partial(feed_forward, channels, hidden)
        return AttentiveLayer(channels, attention, scan, (prompts[1], state), parts)

    def group(depth: int) -> nn.Module:
        body = nn.Sequential()
        body.add_module("layers", nn.Sequential(*(layer(i) for i in range(depth))))
        return ResidualGroup(body, channels)

    frame = Mirrored((group(depth) for depth in depths), channels, scale, tail_channels)
    frame.multiple, frame.scale = window, scale
    return frame


def build(shapes: Shapes) -> Architecture:
    """A MambaIRv2 of the widths, depths, windows, feed-forward parts, tail and scale that the shapes tell."""
    layer = "layers.0.residual_group.layers.0"
    offsets, heads = shapes[f"{layer}.win_mhsa.relative_position_bias_table"]
    _, inner, rank = shapes[f"{layer}.assm.selectiveScan.dt_projs_weight"]
    hidden, channels = shapes[f"{layer}.convffn1.fc1.weight"]
    classical = "conv_last.weight" in shapes
    doublings = sum(key.startswith("upsample.") and key.endswith(".weight") for key in shapes)
    scale = 2**doublings if classical else scale_of_tail(shapes["upsample.0.weight"][0])
    prompts, prompt_rank = shapes[f"{layer}.assm.embeddingB.weight"]
    module = mambairv2(
        channels=channels,
        heads=heads,
        window=(round(offsets**0.5) + 1) // 2,
        hidden=hidden,
        inner=inner,
        state=shapes[f"{layer}.assm.selectiveScan.A_logs"][1],
        rank=rank,
        prompts=(prompts, prompt_rank),
        depths=[
            count_numbered(shapes, f"layers.{i}.residual_group.layers." + "{}.", first=0)
            for i in range(count_numbered(shapes, "layers.{}.", first=0))
        ],
        scale=scale,
        feed_forward=GatedMLP if f"{layer}.convffn1.sg.conv.weight" in shapes else ConvFFN,
        tail_channels=shapes["conv_last.weight"][1] if classical else None,
    )
    return Architecture(module, scale, "deploy", redundant=frozenset({"relative_position_index_SA"}))


def base() -> Mirrored:
    """MambaIRv2 for classical super-resolution at its published size: SNUCV's first stage."""
    return mambairv2(
        channels=174,
        heads=6,
        hidden=348,
        inner=348,
        state=16,
        rank=22,
        prompts=(128, 64),
        depths=(6,) * 6,
        feed_forward=ConvFFN,
        tail_channels=64,
    )
