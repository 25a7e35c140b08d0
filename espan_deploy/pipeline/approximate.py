"""Tiles of a network that sees the whole image: how far from the whole they are, measured on an image of the run."""

from __future__ import annotations

import math

import numpy as np

from espan_deploy.backends.base import Runner, scaled
from espan_deploy.description import ModelDescription
from espan_deploy.errors import EspanDeployError
from espan_deploy.pipeline.picture import Pixels
from espan_deploy.pipeline.tiles import plan_tiles

APPROXIMATE_HALO = 32
"""Pixels around an approximate tile, at least, where its size has room for them."""

HALO_SHARE = 4
"""Of a tile's side at most one part in so many is halo, on each side."""


def approximate_halo(limits: tuple[int, int], description: ModelDescription) -> int:
    """The halo of tiles that cannot be exact: as far as its operators see, if there is room."""
    return max(1, min(max(description.local_halo, APPROXIMATE_HALO), min(limits) // HALO_SHARE))


def begin_of_remark(description: ModelDescription) -> str:
    """That tiles are approximate, and why."""
    return f"this network's tiles are approximate ({description.halo_reason or 'an operator sees the whole image'})"


def measured_difference(runner: Runner, image: Pixels, name: str) -> str:
    """Upscale an image whole and in tiles of half its sides, and say how much they differ.

    image: (H, W, 3), as large as one call takes. name: for the sentence.
    """
    description = runner.description
    height, width = image.shape[:2]
    limits = tuple(-(-side * 3 // 4) for side in (height, width))
    halo = approximate_halo((limits[0], limits[1]), description)
    begin = begin_of_remark(description)
    if description.fixed_size is not None:
        return f"{begin}; how far from the whole cannot be measured, as the model takes no larger image"
    try:
        rows = plan_tiles(height, width, (limits[0], limits[1]), halo, description.tile_step)
        whole = runner.infer(image[None])[0].astype(np.float64)
        scale, worst, squares = description.scale, 0.0, 0.0
        for tile in (tile for row in rows for tile in row):
            y, x = tile.rows, tile.columns
            part = runner.infer(np.ascontiguousarray(image[None, y.low : y.high, x.low : x.high]))[0]
            inner = slice(y.start - y.low, y.stop - y.low), slice(x.start - x.low, x.stop - x.low)
            kept = part[scaled(inner, scale)]
            expected = whole[scaled((slice(y.start, y.stop), slice(x.start, x.stop)), scale)]
            difference = np.abs(kept - expected)
            worst, squares = max(worst, float(difference.max())), squares + float(np.square(difference).sum())
    except (EspanDeployError, MemoryError):
        return f"{begin}; how far from the whole could not be measured on {name}"
    white = 255.0 if image.dtype == np.uint8 else 1.0
    error = squares / whole.size
    figure = f"{10 * math.log10(white**2 / error):.1f} dB" if error else "nothing"
    return f"{begin}: in a part of {name} they differ from the whole by {figure}, at most {worst / white:.1%} of white"
