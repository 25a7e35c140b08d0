"""Photographs to training pairs: one cache of uint8 pixels per run, crops drawn where there is detail.

The cache is a folder: ``hr.npy``, ``lr2.npy`` and ``lr4.npy`` (all photographs' pixels end to end, memory-mapped) and
``index.json`` (name and size of each). Low-resolution images are made once from whole photographs, never from crops.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.degrade import Degradations, degraded_crop, spoiled
from training.drawings import drawn_pair
from training.resize import shrink

Pixels = NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
MULTIPLE = 8
"""Photographs are cropped to a multiple of this, so that both scales divide them."""
CELL = 8
"""Crops are drawn around cells of this many x4 low-resolution pixels."""


def photographs_in(folders: Iterable[Path]) -> list[Path]:
    """Every image file below the folders, sorted by name within each folder."""
    found = []
    for folder in folders:
        found += sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return found


def open_photograph(path: Path, long_side: int) -> Pixels:
    """(H, W, 3) uint8, upright, H and W multiples of MULTIPLE.

    A photograph much longer than ``long_side`` is shrunk by a whole number first: camera pixels are interpolated and
    compressed, so a large photograph is only sharp when made smaller.
    """
    with Image.open(path) as opened:
        image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    divisor = max(1, round(max(image.shape[:2]) / long_side))
    if divisor > 1:
        image = shrink(image, divisor)
    height, width = (size - size % MULTIPLE for size in image.shape[:2])
    return image[:height, :width]


def build_cache(photographs: list[Path], cache: Path, *, long_side: int) -> None:
    """Write the cache, unless one of the same photographs is already there."""
    wanted = {"photographs": [path.name for path in photographs], "long_side": long_side}
    index_file = cache / "index.json"
    if index_file.is_file():
        held = json.loads(index_file.read_text())
        if all(held[key] == value for key, value in wanted.items()):
            return
    cache.mkdir(parents=True, exist_ok=True)
    sizes = []
    flat: dict[str, list[Pixels]] = {"hr": [], "lr2": [], "lr4": []}
    for path in photographs:
        image = open_photograph(path, long_side)
        sizes.append(image.shape[:2])
        flat["hr"].append(image.reshape(-1))
        flat["lr2"].append(shrink(image, 2).reshape(-1))
        flat["lr4"].append(shrink(image, 4).reshape(-1))
    for name, parts in flat.items():
        np.save(cache / f"{name}.npy", np.concatenate(parts))
    index_file.write_text(json.dumps({**wanted, "sizes": sizes}))


@dataclass(frozen=True)
class Photographs:
    """Pairs of whole images, (H, W, 3) uint8 each; ``lr[scale][i]`` is ``hr[i]`` shrunk by that scale."""

    names: list[str]
    hr: list[Pixels]
    lr: dict[int, list[Pixels]]

    def __len__(self) -> int:
        return len(self.hr)

    def subset(self, indices: Iterable[int]) -> Photographs:
        """Those at the indices, in their order."""
        chosen = list(indices)
        return Photographs(
            [self.names[i] for i in chosen],
            [self.hr[i] for i in chosen],
            {scale: [images[i] for i in chosen] for scale, images in self.lr.items()},
        )

    def split(self, every: int) -> tuple[Photographs, Photographs]:
        """Those to train on, and every ``every``-th, held out."""
        held_out = range(every // 2, len(self), every)
        return self.subset(sorted(set(range(len(self))) - set(held_out))), self.subset(held_out)


def open_cache(cache: Path) -> Photographs:
    """Memory-map a cache that :func:`build_cache` wrote."""
    index = json.loads((cache / "index.json").read_text())

    def images(name: str, divisor: int) -> list[Pixels]:
        flat = np.load(cache / f"{name}.npy", mmap_mode="r")
        shapes = [(height // divisor, width // divisor, 3) for height, width in index["sizes"]]
        ends = np.cumsum([height * width * 3 for height, width, _ in shapes])
        return [flat[end - np.prod(shape) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True)]

    return Photographs(index["photographs"], images("hr", 1), {2: images("lr2", 2), 4: images("lr4", 4)})


def cell_detail(hr: Pixels, lr: Pixels) -> NDArray[np.float64]:
    """Per cell, the mean absolute luma that the x4 low-resolution image lost. (H / 4 / CELL, W / 4 / CELL)."""
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    coarse, fine = lr @ luma, hr @ luma
    lost = np.abs(fine - np.repeat(np.repeat(coarse, 4, 0), 4, 1))
    side = 4 * CELL
    rows, columns = (size // side for size in lost.shape)
    cells = lost[: rows * side, : columns * side].reshape(rows, side, columns, side)
    detail: NDArray[np.float64] = cells.mean((1, 3), dtype=np.float64)
    return detail


class CropSampler:
    """Draws batches of aligned crops, turned and mirrored at random, more often where the detail is.

    A cell's chance is its detail to the power ``detail_power``: 0 draws evenly, 1 in proportion to what was lost.
    ``drawn_share`` of the crops are drawn instead (``training/drawings.py``). ``degradations`` spoil the low-resolution
    side alone.
    """

    def __init__(
        self,
        photographs: Photographs,
        *,
        detail_power: float,
        rng: np.random.Generator,
        drawn_share: float = 0.0,
        degradations: Degradations | None = None,
    ) -> None:
        self.photographs = photographs
        self.drawn_share = drawn_share
        self.degradations = degradations
        self.rng = rng
        cells, chances = [], []
        for i, (hr, lr) in enumerate(zip(photographs.hr, photographs.lr[4], strict=True)):
            detail = cell_detail(hr, lr)
            rows, columns = np.indices(detail.shape)
            cells.append(np.stack([np.full(detail.size, i), rows.ravel(), columns.ravel()], 1))
            chances.append((detail.ravel() + 0.5) ** detail_power)
        self.cells = np.concatenate(cells)
        cumulated = np.cumsum(np.concatenate(chances))
        self.cumulated = cumulated / cumulated[-1]

    def batch(self, size: int, patch: int, scale: int) -> tuple[Pixels, Pixels]:
        """``patch``: low-resolution pixels a side.

        Returns the low-resolution crops (size, patch, patch, 3) and the targets in sub-pixel layout, (size, patch,
        patch, 3 * scale**2): channel c * scale**2 + i * scale + j is what a pixel shuffle puts at (i, j) of colour c.
        """
        low = np.empty((size, patch, patch, 3), np.uint8)
        target = np.empty((size, patch, patch, 3 * scale**2), np.uint8)
        drawn = np.searchsorted(self.cumulated, self.rng.random(size), side="right")
        drawn = np.minimum(drawn, len(self.cells) - 1)
        cells_per_scale = CELL * 4 // scale
        for n, (image, row, column) in enumerate(self.cells[drawn]):
            lr = self.photographs.lr[scale][image]
            corner = []
            for cell, length in ((row, lr.shape[0]), (column, lr.shape[1])):
                centre = cell * cells_per_scale + int(self.rng.integers(cells_per_scale))
                corner.append(min(max(centre - patch // 2, 0), length - patch))
            top, left = corner
            hr = self.photographs.hr[image]
            y = hr[top * scale : (top + patch) * scale, left * scale : (left + patch) * scale]
            if self.drawn_share and self.rng.random() < self.drawn_share:
                x, y = drawn_pair(patch, scale, self.rng)
                if self.degradations is not None:
                    x = spoiled(x, self.degradations, self.rng)
            elif self.degradations is not None:
                x = degraded_crop(hr, lr, corner=(top, left), patch=patch, degradations=self.degradations, rng=self.rng)
            else:
                x = lr[top : top + patch, left : left + patch]
            turn = int(self.rng.integers(8))
            x, y = dihedral(x, turn), dihedral(y, turn)
            low[n] = x
            target[n] = y.reshape(patch, scale, patch, scale, 3).transpose(0, 2, 4, 1, 3).reshape(patch, patch, -1)
        return low, target


def dihedral(image: Pixels, turn: int) -> Pixels:
    """One of the eight symmetries of the square, ``turn`` in 0..7, of an (H, W, C) image."""
    if turn & 1:
        image = image[:, ::-1]
    if turn & 2:
        image = image[::-1]
    if turn & 4:
        image = image.transpose(1, 0, 2)
    return image
