"""HAESR's attention: in windows that see some pixels around them, in grids over the whole image, between channels.

Each has one head. Windows and grids can hand their weights on to another block's attention, which then has values only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.networks.swinir import ChannelLinear
from espan_deploy.networks.windows.blocks import halves, map_of, position_index, windows_of

Pattern = Callable[[int, int, int], bool]
"""Whether the pixel (row, column) of an extended window of so many rows is seen, when it lies around the window."""


def star(row: int, column: int, side: int) -> bool:
    """The middle row and column, and the diagonals."""
    return side // 2 in (row, column) or row in (column, side - 1 - column)


def cross(row: int, column: int, side: int) -> bool:
    """The two middle rows and columns."""
    middle = (side // 2 - 1, side // 2)
    return row in middle or column in middle


def corner(row: int, column: int, side: int) -> bool:
    """3x3 pixels in each corner."""
    return all(min(place, side - 1 - place) < 3 for place in (row, column))


class Attention(nn.Module):
    """Attention with one head, in windows or grids as a subclass cuts them.

    leads: computes the weights of attention; else it is given them, and has values only.
    """

    def __init__(self, channels: int, window: int, *, leads: bool) -> None:
        super().__init__()
        self.window = window
        if leads:
            self.to_q = ChannelLinear(channels, channels, bias=False)
            self.to_kv = ChannelLinear(channels, 2 * channels, bias=False)
        else:
            self.to_v = ChannelLinear(channels, channels, bias=False)
        self.to_out = nn.Sequential(ChannelLinear(channels, channels, bias=False))

    def forward(self, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: (N, C, H, W) of whole windows. weights: (windows, queries, keys). Returns the map, and the weights."""
        if weights is None:
            key, value = (self.keys(part) for part in halves(self.to_kv(x)))
            query = self.queries(self.to_q(x)) * x.shape[1] ** -0.5
            weights = (query.transpose(1, 2) @ key + self.bias()).softmax(-1)
        else:
            value = self.keys(self.to_v(x))
        attended = self.joined(value @ weights.transpose(1, 2), x.shape[2], x.shape[3])
        return self.to_out(attended), weights

    def queries(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as (windows, C, queries)."""
        raise NotImplementedError

    def keys(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as (windows, C, keys)."""
        raise NotImplementedError

    def joined(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The inverse of :meth:`queries`."""
        raise NotImplementedError

    def bias(self) -> Tensor:
        """(1, queries, keys): of positions."""
        raise NotImplementedError


class LocalAttention(Attention):
    """Windows that also see some of the pixels around them; outside the map, these are zero."""

    rows: Tensor
    columns: Tensor

    def __init__(self, channels: int, window: int, extent: int, pattern: Pattern, *, leads: bool) -> None:
        super().__init__(channels, window, leads=leads)
        self.extent = extent
        side = window + 2 * extent
        inside = range(extent, extent + window)
        seen = [
            (row, column)
            for row in range(side)
            for column in range(side)
            if (row in inside and column in inside) or pattern(row, column, side)
        ]
        rows, columns = torch.tensor(seen).unbind(1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        if leads:
            self.rel_pos_bias = nn.Parameter(0.02 * torch.randn(1, window**2, len(seen)))

    def queries(self, x: Tensor) -> Tensor:
        return windows_of(x, self.window)

    def keys(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        rows, columns = height // self.window, width // self.window
        extended = F.pad(x, (self.extent,) * 4)
        row = torch.arange(rows, device=x.device)[:, None] * self.window + self.rows
        column = torch.arange(columns, device=x.device)[:, None] * self.window + self.columns
        # A tensor, as the exporter takes no computed number for an operand.
        stride = torch.full((1,), width + 2 * self.extent, device=x.device)
        place = (row * stride)[:, None] + column
        seen = extended.flatten(2).index_select(2, place.flatten())
        split = seen.reshape(-1, channels, rows * columns, self.rows.shape[0])
        return split.transpose(1, 2).flatten(0, 1)

    def joined(self, windows: Tensor, height: int, width: int) -> Tensor:
        return map_of(windows, self.window, height, width)

    def bias(self) -> Tensor:
        return self.rel_pos_bias


class GridAttention(Attention):
    """The same pixel of every cell of a grid of window x window cells, and some pixels half a cell further.

    shift: whether these are lower, and whether further to the right. The grid's last row or column has none.
    """

    index: Tensor

    def __init__(self, channels: int, window: int, shift: tuple[bool, bool], *, leads: bool) -> None:
        super().__init__(channels, window, leads=leads)
        self.shift = shift
        self.register_buffer("index", position_index(window, window), persistent=False)
        if leads:
            between = (window - shift[0]) * (window - shift[1])
            self.rel_pos_bias = nn.Embedding((2 * window - 1) ** 2, 1)
            self.extra_pos_bias = nn.Parameter(0.02 * torch.randn(1, window**2, between))

    def queries(self, x: Tensor) -> Tensor:
        return self._grid(x, self.window, self.window)

    def keys(self, x: Tensor) -> Tensor:
        height, width = (side // self.window for side in x.shape[2:])
        rows, columns = (self.window - shifted for shifted in self.shift)
        between = x
        if self.shift[0]:
            between = between[:, :, height // 2 : height // 2 + rows * height]
        if self.shift[1]:
            between = between[..., width // 2 : width // 2 + columns * width]
        return torch.cat([self._grid(x, self.window, self.window), self._grid(between, rows, columns)], 2)

    def joined(self, windows: Tensor, height: int, width: int) -> Tensor:
        channels = windows.shape[1]
        cell = (height // self.window, width // self.window)
        split = windows.reshape(-1, *cell, channels, self.window, self.window)
        return split.permute(0, 3, 4, 1, 5, 2).reshape(-1, channels, height, width)

    def bias(self) -> Tensor:
        return torch.cat([self.rel_pos_bias(self.index).permute(2, 0, 1), self.extra_pos_bias], 2)

    @staticmethod
    def _grid(x: Tensor, rows: int, columns: int) -> Tensor:
        _, channels, height, width = x.shape
        split = x.reshape(-1, channels, rows, height // rows, columns, width // columns)
        return split.permute(0, 3, 5, 1, 2, 4).reshape(-1, channels, rows * columns)


class ChannelAttention(nn.Module):
    """Attention between channels, each the values that it has in a window; or, strided, at the same place of all."""

    def __init__(self, channels: int, window: int, *, strided: bool) -> None:
        super().__init__()
        self.window, self.strided = window, strided
        self.temperature = nn.Parameter(torch.ones(1, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        cells = (height // self.window, self.window, width // self.window, self.window)
        split = self.qkv_dwconv(self.qkv(x)).reshape(-1, 3, channels, *cells)
        # (3, N, one place of every window or one window, C, its pixels)
        order = (1, 0, 4, 6, 2, 3, 5) if self.strided else (1, 0, 3, 5, 2, 4, 6)
        parts = split.permute(order).flatten(5).flatten(2, 3)
        query, key, value = parts[0], parts[1], parts[2]
        weights = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(2, 3) * self.temperature
        attended = weights.softmax(-1) @ value
        if self.strided:
            back = attended.reshape(-1, self.window, self.window, channels, cells[0], cells[2])
            joined = back.permute(0, 3, 4, 1, 5, 2).reshape(-1, channels, height, width)
        else:
            joined = map_of(attended.flatten(0, 1), self.window, height, width)
        out: Tensor = self.project_out(joined)
        return out
