"""Windows of a map: padding to whole ones, taking them out, putting them back.

Sizes come from ``x.shape`` and from arithmetic on it alone, so that an exported graph is right at every size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

APART = -100.0
"""Added to the score of two pixels that must not see each other, as Swin and its descendants do it."""


def mirrored(x: Tensor, multiple: int, *, repeat_edge: bool = False) -> Tensor:
    """An (N, C, H, W) map, mirrored at its bottom and right border until both sides are multiples.

    The mirror image is mirrored again where one is too small. repeat_edge: the last row or column appears twice
    ("symmetric"), else once ("reflect").
    """
    for axis in (2, 3):
        size = x.shape[axis]
        position = torch.arange((size + multiple - 1) // multiple * multiple, device=x.device)
        # Tensors, as the exporter takes no computed number for an operand.
        last = torch.full((1,), 2 * size - (1 if repeat_edge else 2), device=x.device)
        position = position % (last + repeat_edge).clamp(min=1)  # a single row is mirrored onto itself
        x = x.index_select(axis, torch.minimum(position, last - position))
    return x


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second half of the channels. (``chunk`` would export a sequence, which engines lack.)"""
    half = x.shape[1] // 2
    return x[:, :half], x[:, half:]


def windows_of(x: Tensor, size: int) -> Tensor:
    """An (N, C, H, W) map, H and W multiples of size, as (N * windows, C, size**2), row by row."""
    _, channels, height, width = x.shape
    split = x.reshape(-1, channels, height // size, size, width // size, size)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, size * size)


def map_of(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """The (N, C, height, width) map of such windows: the inverse of :func:`windows_of`."""
    channels = windows.shape[1]
    split = windows.reshape(-1, height // size, width // size, channels, size, size)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


def heads_of(x: Tensor, heads: int, size: int) -> Tensor:
    """An (N, heads * C, H, W) map of whole windows, as (N, window rows, window columns, heads, size**2, C)."""
    _, channels, height, width = x.shape
    split = x.reshape(-1, heads, channels // heads, height // size, size, width // size, size)
    return split.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5)


def map_of_heads(x: Tensor, size: int) -> Tensor:
    """The (N, heads * C, H, W) map of such windows: the inverse of :func:`heads_of`."""
    _, rows, columns, heads, _, channels = x.shape
    split = x.reshape(-1, rows, columns, heads, size, size, channels)
    return split.permute(0, 3, 6, 1, 4, 2, 5).reshape(-1, heads * channels, rows * size, columns * size)


def rolled(x: Tensor, shift: int) -> Tensor:
    """An (N, C, H, W) map moved up and to the left by shift pixels, what leaves coming back on the other side.

    A negative shift moves it back.
    """
    if not shift:
        return x
    x = torch.cat([x[:, :, shift:], x[:, :, :shift]], 2)
    return torch.cat([x[..., shift:], x[..., :shift]], 3)


class ShiftMask(nn.Module):
    """Keeps apart what a rolled map brought together: the bottom row of windows, and the right column.

    query, key: rows (and columns) of a window's queries and keys; of keys there may be fewer, pooled alike.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, shift: int, query: int, key: int) -> None:
        super().__init__()
        from_other_side = [torch.arange(side) >= side - shift * side // query for side in (query, key)]
        apart = torch.where(from_other_side[0][:, None] != from_other_side[1], APART, 0.0)
        ones = torch.ones(query, key)
        self.register_buffer("rows", torch.kron(apart, ones), persistent=False)
        self.register_buffer("columns", torch.kron(ones, apart), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        """scores: (N, window rows, window columns, heads, queries, keys)."""
        below = _last(scores.shape[1], scores).reshape(-1, 1, 1, 1, 1)
        right = _last(scores.shape[2], scores).reshape(-1, 1, 1, 1)
        return scores + below * self.rows + right * self.columns


def _last(count: int, like: Tensor) -> Tensor:
    """(count,): 1 at the end, 0 before."""
    position = torch.arange(count, device=like.device)
    return (position == position[-1:]).to(like.dtype)


def position_index(query: int, key: int) -> Tensor:
    """(query**2, key**2): which row of a table of relative positions is for this query and key of a window.

    Where a window has fewer rows of keys than of queries, as many queries share their offsets as share a key.
    """
    row = torch.arange(query) // (query // key)
    offset = row[:, None] - torch.arange(key) + key - 1
    index = offset[:, None, :, None] * (2 * key - 1) + offset[None, :, None, :]
    return index.reshape(query**2, key**2)
