"""Images to verify precision on: a user's folder, or a small generated set that asks as much of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from espan_deploy.errors import InputError

LOW_SHAPE = (64, 80)
"""Of the generated images: small, since a network's worst values show on any size beyond its halo."""

MAX_SIDE = 512
"""Larger images are cropped to this in the middle: the check is of values, not of sizes."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

Pixels8 = NDArray[np.uint8]


@dataclass(frozen=True)
class VerifyImage:
    """name. low: (H, W, 3) uint8 RGB. high: the truth, (scale*H, scale*W, 3), where there is one.

    stress: no picture anyone upscales, made to drive values to their ends: it must come out finite, and is left out
    of every other figure.
    """

    name: str
    low: Pixels8
    high: Pixels8 | None = None
    stress: bool = False


def generated_images(scale: int, *, variant: int = 0) -> list[VerifyImage]:
    """Seven images, most with their truths, the same ones every time.

    Ramps, edges, strokes, gratings, noise, leaves, extremes.

    The truths are made first and reduced by Pillow's antialiased bicubic filter.
    variant: another seven of the same kinds, for who must not look at those that are judged by.
    """
    rows, columns = LOW_SHAPE[0] * scale, LOW_SHAPE[1] * scale
    images = []
    for seed, (name, make) in enumerate(_KINDS.items()):
        values = make(np.random.default_rng(seed + variant * len(_KINDS)), rows, columns)
        high = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
        low = Image.fromarray(high).resize(LOW_SHAPE[::-1], Image.Resampling.BICUBIC)
        # Nobody can see how far a ramp is from its truth: at 50 dB and more, rounding is what is measured.
        truth = None if name == "ramps" else high
        images.append(VerifyImage(name, np.asarray(low), truth, stress=name == "extremes"))
    return images


def load_images(folder: Path, scale: int) -> list[VerifyImage]:
    """Every image of a folder; with subfolders LR and HR of as many images, their pairs in the order of their names.

    Raises InputError where there is no usable image, or a truth is not scale times its low-resolution image.
    """
    low_folder, high_folder = folder / "LR", folder / "HR"
    paired = low_folder.is_dir() and high_folder.is_dir()
    source = low_folder if paired else folder
    if not source.is_dir():
        raise InputError(f"{folder} is no folder", hint="--verify takes a folder of images")
    lows = _files(source)
    highs: list[Path | None] = [*_files(high_folder)] if paired else [None] * len(lows)
    if len(lows) != len(highs):
        raise InputError(f"{low_folder} holds {len(lows)} images and {high_folder} {len(highs)}, expected pairs")
    images = [_load(low, high, scale) for low, high in zip(lows, highs, strict=True)]
    if not images:
        raise InputError(f"{source} holds no image", hint=f"images end in {', '.join(SUFFIXES)}")
    return images


def fitted(
    images: Sequence[VerifyImage],
    scale: int,
    *,
    height: tuple[int, int] = (1, MAX_SIDE),
    width: tuple[int, int] = (1, MAX_SIDE),
    multiple: int = 1,
) -> list[VerifyImage]:
    """The images in sizes a model takes: cropped where they are larger, repeated where they are smaller.

    height, width: smallest and largest. One that had to be repeated has no truth any more.
    """
    result = []
    for image in images:
        rows, columns = (
            max(low, min(high, side) // multiple * multiple, multiple)
            for side, (low, high) in zip(image.low.shape[:2], (height, width), strict=True)
        )
        missing = max(0, rows - image.low.shape[0]), max(0, columns - image.low.shape[1])
        low = np.pad(image.low, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="wrap")[:rows, :columns]
        truth = None if image.high is None or any(missing) else image.high[: rows * scale, : columns * scale]
        result.append(replace(image, low=np.ascontiguousarray(low), high=truth))
    return result


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _load(low_path: Path, high_path: Path | None, scale: int) -> VerifyImage:
    low = _read(low_path)
    top, left = (max(0, (side - MAX_SIDE) // 2) for side in low.shape[:2])
    cut = low[top : top + MAX_SIDE, left : left + MAX_SIDE]
    if high_path is None:
        return VerifyImage(low_path.name, cut)
    high = _read(high_path)
    if any(abs(h - scale * s) >= scale for h, s in zip(high.shape[:2], low.shape[:2], strict=True)):
        raise InputError(f"{high_path} is {high.shape[:2]}, expected {scale} times {low.shape[:2]} of {low_path.name}")
    rows, columns = cut.shape[0] * scale, cut.shape[1] * scale
    return VerifyImage(
        low_path.name, cut, high[top * scale : top * scale + rows, left * scale : left * scale + columns]
    )


def _read(path: Path) -> Pixels8:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as exc:
        raise InputError(f"{path} cannot be read as an image: {exc}") from exc


Values = NDArray[np.float64]


def _ramps(rng: np.random.Generator, rows: int, columns: int) -> Values:
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    ramps: Values = np.stack([x, y, (x + y) / 2], -1) * rng.uniform(0.7, 1.0, 3)
    return ramps


def _edges(rng: np.random.Generator, rows: int, columns: int) -> Values:
    y, x = np.mgrid[0:rows, 0:columns]
    values = np.full((rows, columns, 3), 0.5)
    for _ in range(24):
        angle, reach = rng.uniform(0, np.pi), rng.uniform(4, 40)
        distance = (x - rng.uniform(0, columns)) * np.cos(angle) + (y - rng.uniform(0, rows)) * np.sin(angle)
        values[np.abs(distance) < reach] = rng.uniform(0, 1, 3)
    return values


def _strokes(rng: np.random.Generator, rows: int, columns: int) -> Values:
    """Rows of random 5x7 glyphs in three sizes, ink on paper: what text looks like to a network."""
    values = np.full((rows, columns, 3), 0.9)
    top = 4
    while top < rows:
        size = int(rng.integers(2, 5))
        for left in range(4, columns - 6 * size, 6 * size):
            glyph = np.kron(rng.random((7, 5)) < 0.4, np.ones((size, size), bool))
            window = values[top : top + 7 * size, left : left + 5 * size]
            window[glyph[: window.shape[0], : window.shape[1]]] = 0.15
        top += 10 * size
    return values


def _gratings(rng: np.random.Generator, rows: int, columns: int) -> Values:
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    plate = 0.5 + 0.3 * np.cos(60 * (x**2 + y**2))
    angle = rng.uniform(0, np.pi)
    lines = 0.5 + 0.3 * np.sin(90 * (x * np.cos(angle) + y * np.sin(angle)))
    return np.stack([plate, lines, (plate + lines) / 2], -1)


def _noise(rng: np.random.Generator, rows: int, columns: int) -> Values:
    """Noise with the 1/f spectrum of photographs, its channels correlated as theirs are."""
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    frequency[0, 0] = 1.0
    planes = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((rows, columns))) / frequency, (rows, columns))]
    planes += [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((rows, columns))) / frequency, (rows, columns))]
    mixed = np.stack([planes[0], planes[0] + 0.2 * planes[1], planes[0] - 0.2 * planes[1]], -1)
    noise: Values = (0.5 + 0.2 * mixed / mixed.std()).astype(np.float64)
    return noise


def _leaves(rng: np.random.Generator, rows: int, columns: int) -> Values:
    """Overlapping discs of all sizes, textured: the dead leaves model of natural images."""
    y, x = np.mgrid[0:rows, 0:columns]
    values = _noise(rng, rows, columns)
    texture = values - 0.5
    for radius in np.sort(4 / rng.uniform(0.05, 1.0, 160) ** 0.7)[::-1]:
        disc = (x - rng.uniform(0, columns)) ** 2 + (y - rng.uniform(0, rows)) ** 2 < radius**2
        values[disc] = rng.uniform(0.05, 0.95, 3) + rng.uniform(0, 0.4) * texture[disc]
    return values


def _extremes(rng: np.random.Generator, rows: int, columns: int) -> Values:
    """Black and white noise in blocks, and saturated colours: what drives activations furthest."""
    blocks = (rng.random((rows // 4 + 1, columns // 4 + 1, 1)) < 0.5).astype(np.float64)
    values: Values = np.kron(blocks, np.ones((4, 4, 3)))[:rows, :columns].astype(np.float64)
    half = columns // 2
    colours = (rng.random((rows // 8 + 1, columns // 8 + 1, 3)) < 0.5).astype(np.float64)
    values[:, half:] = np.kron(colours, np.ones((8, 8, 1)))[:rows, : columns - half]
    return values


_KINDS: dict[str, Callable[[np.random.Generator, int, int], Values]] = {
    "ramps": _ramps,
    "edges": _edges,
    "strokes": _strokes,
    "gratings": _gratings,
    "noise": _noise,
    "leaves": _leaves,
    "extremes": _extremes,
}
