"""Exact tiles: each is computed with the context its pixels depend on, so that the parts equal the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

from espan_deploy.errors import InputError


@dataclass(frozen=True)
class Span:
    """One side of a tile, in low-resolution pixels: [start, stop) is kept of what [low, high) computes."""

    start: int
    stop: int
    low: int
    high: int


@dataclass(frozen=True)
class Tile:
    """A rectangle to compute and the part of it to keep."""

    rows: Span
    columns: Span

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what the engine gets."""
        return self.rows.high - self.rows.low, self.columns.high - self.columns.low


def kept_height(row: list[Tile]) -> int:
    """Rows of the image that a row of tiles keeps."""
    return row[0].rows.stop - row[0].rows.start


def plan_spans(side: int, limit: int, halo: int, multiple: int = 1, *, full: bool = False) -> list[Span]:
    """Split one side into spans whose computed part is at most ``limit`` long, all equally long.

    full: as long as they may be, so that other images' spans are too, rather than as short as so many can be.

    At the image's own border a span ends exactly there, so zero padding falls where it falls on the whole image.
    Every low is a multiple of ``multiple``, and every length but the last, which takes what is left. Raises InputError
    where ``limit`` leaves nothing between two halos.
    """
    if side <= limit:
        return [Span(0, side, 0, side)]
    halo = _round_up(halo, multiple)
    rest = side % multiple
    limit -= rest
    limit -= limit % multiple
    step = limit - 2 * halo
    if step < multiple:
        raise InputError(
            f"tiles of {limit} leave nothing between two halos of {halo}",
            hint=f"use --tile {_round_up(4 * halo + multiple, 32)} or more, or --tile none",
        )
    count = max(2, math.ceil((side - rest - 2 * halo) / step))
    # Equal lengths make equal shapes: one engine shape, and batches. The last ones overlap a little more.
    least = _round_up(math.ceil((side - rest + (count - 1) * 2 * halo) / count), multiple)
    length = limit if full else min(limit, least)
    lows = [min(index * (length - 2 * halo), side - rest - length) for index in range(count)]
    edges = [0, *(low + halo for low in lows[1:]), side]
    highs = [*(low + length for low in lows[:-1]), side]
    return [Span(edges[i], edges[i + 1], lows[i], highs[i]) for i in range(count)]


def plan_tiles(
    height: int, width: int, limits: tuple[int, int], halo: int, multiple: int = 1, *, full: bool = False
) -> list[list[Tile]]:
    """Rows of tiles that keep every pixel exactly once, each computed part within ``limits`` (height, width)."""
    rows = plan_spans(height, limits[0], halo, multiple, full=full)
    columns = plan_spans(width, limits[1], halo, multiple, full=full)
    return [[Tile(row, column) for column in columns] for row in rows]


def tile_limits(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """Height and width of the largest useful tile of at most ``max_pixels``: the whole image, a strip, or a square."""
    if height * width <= max_pixels:
        return height, width
    square = math.isqrt(max_pixels)
    if height <= square:
        return height, max_pixels // height
    if width <= square:
        return max_pixels // width, width
    return square, square


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
