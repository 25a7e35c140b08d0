"""Tiny networks, each with one structure whose sizes are computed: x2 in RGB, random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.scans.blocks import SelectiveScan

CHANNELS = 12


class Sized(nn.Module):
    """3x3 -> the structure -> 3x3 -> pixel shuffle."""

    def __init__(self, structure: nn.Module | None = None) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, 12, 3, padding=1)
        self.structure = structure or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.pixel_shuffle(self.tail(self.structure(self.head(x))), 2)
        return out


class Padded(Sized):
    """Mirrors the image at its right and lower edge, up to a multiple of 8, and cuts the result."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % 8, 0, -height % 8), mode="reflect")
        return super().forward(x)[:, :, : 2 * height, : 2 * width]


class WindowAttention(nn.Module):
    """Self-attention in windows of 4, shifted cyclically."""

    def __init__(self, window: int = 4, shift: int = 0) -> None:
        super().__init__()
        self.window, self.shift, self.qkv = window, shift, nn.Linear(CHANNELS, 3 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        side = self.window
        y = torch.roll(x, (-self.shift, -self.shift), (2, 3)) if self.shift else x
        y = y.reshape(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 3, 5, 1)
        q, k, v = self.qkv(y.reshape(-1, side * side, channels)).chunk(3, -1)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        y = y.reshape(batch, height // side, width // side, side, side, channels).permute(0, 5, 1, 3, 2, 4)
        y = y.reshape(batch, channels, height, width)
        return x + (torch.roll(y, (self.shift, self.shift), (2, 3)) if self.shift else y)


class UShape(nn.Module):
    """Down by 2, up by 2, and a shortcut: only even sizes fit."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(CHANNELS, 8, 4, 2, 1), nn.ConvTranspose2d(8, CHANNELS, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.up(torch.relu(self.down(x)))
        return x + up


class Resized(nn.Module):
    """A gate from a strided pooling, brought back to a size that was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        small = self.conv(F.max_pool2d(x, 5, 3))
        return x * torch.sigmoid(F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False))


class Pooled(nn.Module):
    """A gate for each channel, from its mean over the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(F.adaptive_avg_pool2d(x, 1)))


class Shuffled(nn.Module):
    """Blocks of 2x2 become channels, are convolved, and go back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * CHANNELS, 4 * CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.pixel_shuffle(torch.relu(self.conv(F.pixel_unshuffle(x, 2))), 2)
        return out


class Scanned(nn.Module):
    """A selective scan over all pixels, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.scan = SelectiveScan(1, CHANNELS, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.scan.scanned(x.flatten(2)[:, None])[:, 0].reshape(x.shape)


STRUCTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # and the multiple that their sizes must be of
    "padded to a multiple": (Padded, 1),
    "windows": (lambda: Sized(WindowAttention()), 4),
    "windows, padded": (lambda: Padded(WindowAttention()), 1),
    "windows, shifted": (lambda: Padded(WindowAttention(shift=2)), 1),
    "u shape": (lambda: Sized(UShape()), 2),
    "resized to a computed size": (lambda: Sized(Resized()), 1),
    "pooled globally": (lambda: Sized(Pooled()), 1),
    "channel shuffled": (lambda: Sized(Shuffled()), 2),
    "scanned": (lambda: Sized(Scanned()), 1),
}
