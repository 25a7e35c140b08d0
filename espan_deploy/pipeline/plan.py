"""How much at once: tiles from a memory budget, batches from what waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from espan_deploy.description import ModelDescription
from espan_deploy.pipeline.approximate import approximate_halo
from espan_deploy.pipeline.tiles import Tile, plan_tiles, tile_limits

DEFAULT_BYTES_PER_PIXEL = 1600
"""Of activations for one low-resolution pixel in FP32, where the engine does not say: ESPAN takes about this."""

MAX_TILE_PIXELS = 1 << 20
"""Beyond a megapixel the halo costs under a tenth, and larger tiles only take memory."""

MIN_TILE_PIXELS = 128 * 128

BATCH_PIXELS = 128 * 128
"""On a CPU, batches up to this many pixels save calls; larger ones are no faster than one image after another."""

MAX_BATCH = 64


@dataclass(frozen=True)
class TilePolicy:
    """How images are cut.

    tile: "auto", "none", or the side of a square that the engine gets, halo included.
    max_pixels: of one engine call, for "auto". max_sides: height and width that the engine takes at most, for "auto".
    full: whether tiles are as large as they may be, so that those of other images are too.
    """

    tile: int | str
    max_pixels: int
    max_sides: tuple[int, int] | None = None
    full: bool = False

    def plan(self, height: int, width: int, description: ModelDescription, *, share: float = 1.0) -> list[list[Tile]]:
        """Rows of tiles for an image; where the network sees the whole image, they are approximate.

        Those of a model of one size are of that size, unless the image is smaller.
        Raises InputError where tiles are too small for the halo.
        share: of ``max_pixels``, where something else takes the memory of the rest.
        """
        fixed = description.fixed_size
        if fixed is not None and self.tile != "none":
            limits = (min(height, fixed[0]), min(width, fixed[1]))
        elif self.tile == "none":
            limits = (height, width)
        elif self.tile == "auto":
            limits = tile_limits(
                height, width, max(min(self.max_pixels, MIN_TILE_PIXELS), int(self.max_pixels * share))
            )
            if self.max_sides is not None:
                limits = (min(limits[0], self.max_sides[0]), min(limits[1], self.max_sides[1]))
        else:
            limits = (int(self.tile), int(self.tile))
        if description.halo is None:
            halo = approximate_halo(limits, description)
        else:
            halo = description.halo
        return plan_tiles(height, width, limits, halo, description.tile_step, full=self.full or fixed is not None)


@dataclass(frozen=True)
class BatchPolicy:
    """How many images share an engine call: ``most``, and as many as have ``pixels`` together, at least one.

    max_wait_seconds: for how long the oldest may wait for others of its shape.
    """

    most: int = MAX_BATCH
    pixels: int = BATCH_PIXELS
    max_wait_seconds: float = 0.0

    def size(self, height: int, width: int) -> int:
        """Images of this size per call."""
        return max(1, min(self.most, self.pixels // (height * width)))


def fixed_batch(size: int) -> BatchPolicy:
    """Always up to so many, whatever their size."""
    return BatchPolicy(size, 1 << 62)


def pixels_within(memory_bytes: int, bytes_per_pixel: int, lanes: int) -> int:
    """The largest engine call, in low-resolution pixels, so that all lanes' activations fit the memory."""
    return max(MIN_TILE_PIXELS, min(MAX_TILE_PIXELS, memory_bytes // (bytes_per_pixel * lanes)))


def pick_batch(shapes: Sequence[tuple[int, ...]], policy: BatchPolicy) -> list[int]:
    """Which of the waiting regions go together: the oldest, and those of its shape, by index in order.

    shapes: height and width first.
    """
    size = policy.size(*shapes[0][:2])
    picked = []
    for index, shape in enumerate(shapes):
        if shape == shapes[0]:
            picked.append(index)
            if len(picked) == size:
                break
    return picked


def next_batch(
    shapes: Sequence[tuple[int, ...]], waited_seconds: Sequence[float], policy: BatchPolicy
) -> list[int] | float:
    """Which of the waiting regions go together now, by index; or for how many seconds to wait for more of their shape.

    The oldest decides, and nobody waits once the batch is full.
    """
    picked = pick_batch(shapes, policy)
    left = policy.max_wait_seconds - max(waited_seconds)
    return picked if left <= 0 or len(picked) == policy.size(*shapes[0][:2]) else left
