"""What a network is calibrated on: a folder of photographs, or generated pictures, and always pages of text."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from espan_deploy.errors import CalibrationError
from espan_deploy.precision.images import SUFFIXES, VerifyImage, generated_images

Pixels8 = NDArray[np.uint8]

FEW = 16
"""Fewer photographs than this are used, and it is said: their colours and textures stand for all."""

MOST = 240
"""Photographs read at most, spread over the folder: more change nothing and take memory."""

LARGEST_SIDE = 640
"""Of a photograph that is kept: of larger ones the middle."""

LEAST_SIDE = 64

HELD_OUT = 6
"""Every sixth photograph, at most HELD_OUT_MOST, is not calibrated on: the result is judged on it."""

HELD_OUT_MOST = 10

REDUCTIONS = (1, 2, 4)
"""Photographs are shown as they are and reduced: what is upscaled is often sharper than a photograph at full size."""

PAGES, REDUCED_PAGES = "pages of text", "pages of text, reduced"

EDGES, MADE_UP = "edges between colours", "gratings, strokes and noise"

ADDED = {PAGES: 0.03, REDUCED_PAGES: 0.08, EDGES: 0.03, MADE_UP: 0.03}
"""Of the crops, what drives values furthest, and photographs hold little of. One in 48 of most kinds is enough for
ranges to hold it; more make codes coarser for photographs."""

PAGE_REDUCTIONS = (2.5, 4.0)
"""From and to. Softer than letters of pixels: networks that break down on those take these."""

GENERATED_ROUNDS, ADDED_ROUNDS = 6, 3
"""How many generated pictures of each kind there are: where they stand for photographs, and where they are added."""

ALIKE_LEVELS = 1.0
"""Pictures whose thumbnails differ by less, in levels, are one picture."""


@dataclass(frozen=True)
class CalibrationPictures:
    """pictures: to calibrate on, mostly; shares: of the crops, those of each kind of ADDED. made_up: of two of them.

    held_out: to judge on, with their truths. notes: what the user should know of them.
    """

    pictures: tuple[Pixels8, ...]
    made_up: Mapping[str, tuple[Pixels8, ...]]
    held_out: tuple[VerifyImage, ...]
    notes: tuple[str, ...]
    shares: Mapping[str, float] = field(default_factory=lambda: dict(ADDED))

    def crops(self, rng: np.random.Generator, count: int, side: int) -> Pixels8:
        """(count, side, side, 3): places, sizes and mirrorings at random, some of the kinds of ADDED."""
        kinds = [*self.shares, None]
        shares = [*self.shares.values(), 1 - sum(self.shares.values())]
        return np.stack([self._crop(kinds[rng.choice(len(kinds), p=shares)], rng, side) for _ in range(count)])

    def spread_crops(self, rng: np.random.Generator, count: int, side: int) -> Pixels8:
        """The same with as many of each kind as its share asks for, and at least one."""
        counts = {kind: max(1, round(share * count)) for kind, share in self.shares.items()}
        kinds: list[str | None] = [kind for kind, each in counts.items() for _ in range(each)]
        kinds += [None] * max(1, count - len(kinds))
        return np.stack([self._crop(kind, rng, side) for kind in kinds])

    def crops_of(self, kind: str | None, rng: np.random.Generator, count: int, side: int) -> Pixels8:
        """The same of one of the kinds of ADDED alone, or of none of them."""
        return np.stack([self._crop(kind, rng, side) for _ in range(count)])

    def without(self, kind: str) -> CalibrationPictures:
        """The same without a kind of ADDED."""
        return replace(self, shares={name: share for name, share in self.shares.items() if name != kind})

    def _crop(self, kind: str | None, rng: np.random.Generator, side: int) -> Pixels8:
        if kind == PAGES:
            return text_page(rng, side)
        if kind == REDUCED_PAGES:
            page = text_page(rng, round(side * rng.uniform(*PAGE_REDUCTIONS)), coloured=True)
            return np.asarray(Image.fromarray(page).resize((side, side), Image.Resampling.BICUBIC))
        source = self.pictures if kind is None else self.made_up[kind]
        return random_crop(source[rng.integers(len(source))], rng, side)


def random_crop(picture: Pixels8, rng: np.random.Generator, side: int) -> Pixels8:
    """(side, side, 3) of a picture: reduced, mirrored or turned, or not; continued where the picture is smaller."""
    fitting = [each for each in REDUCTIONS if min(picture.shape[:2]) // each >= side]
    reduction = fitting[rng.integers(len(fitting))] if fitting else 1
    # Only what is needed of it is reduced.
    rows, columns = (min(size, side * reduction) for size in picture.shape[:2])
    top, left = (rng.integers(size - part + 1) for size, part in zip(picture.shape, (rows, columns), strict=False))
    crop = picture[top : top + rows, left : left + columns]
    if reduction > 1:
        crop = np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC))
    missing = side - crop.shape[0], side - crop.shape[1]
    if any(missing):
        crop = np.pad(crop, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop.transpose(1, 0, 2)
    return np.ascontiguousarray(crop)


def load_pictures(folder: Path, scale: int) -> CalibrationPictures:
    """The photographs of a folder and its subfolders. Raises CalibrationError where none can be used."""
    if not folder.is_dir():
        raise CalibrationError(f"{folder} is no folder", hint="--calibrate takes a folder of photographs")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    spread = [paths[index] for index in np.linspace(0, len(paths) - 1, min(MOST, len(paths))).astype(int)]
    found, small, damaged = [], 0, 0
    for path in spread:
        picture = _read(path)
        if picture is None:
            damaged += 1
        elif min(picture.shape[:2]) < LEAST_SIDE:
            small += 1
        else:
            found.append((path.name, picture))
    refused = [
        f"{count} of {len(spread)} images {what}"
        for count, what in ((damaged, "cannot be read"), (small, f"are smaller than {LEAST_SIDE} pixels"))
        if count
    ]
    if not found:
        raise CalibrationError(
            f"{folder} holds no image to calibrate on" + (f": {', '.join(refused)}" if refused else ""),
            hint=f"thirty or more photographs of {LEAST_SIDE} pixels and more are good: {', '.join(SUFFIXES)}",
        )
    notes = list(refused)
    distinct = _distinct([picture for _, picture in found])
    if distinct == 1 and len(found) > 1:
        notes.append(
            f"the {len(found)} images are all alike: the result is fitted to such pictures and may fail on others"
        )
    elif distinct < FEW:
        notes.append(f"only {distinct} different photographs to calibrate on; {FEW} or more are better, of all kinds")
    return _parted(found, scale, notes)


def generated_pictures(scale: int) -> CalibrationPictures:
    """Pictures made up, the same ones every time, for when no folder is given."""
    made_up = _made_up(scale, GENERATED_ROUNDS)
    note = "no folder of photographs was given with --calibrate: calibrated on generated pictures"
    return CalibrationPictures(tuple(each for kind in made_up.values() for each in kind), made_up, (), (note,))


def text_page(rng: np.random.Generator, side: int, *, coloured: bool = False) -> Pixels8:
    """(side, side, 3): lines of random characters, boxes and strokes in two greys, every other page black on white.

    coloured: in two colours instead of two greys.
    """
    shades = np.array([[255], [0]]) if rng.random() < 0.5 else rng.integers(0, 256, (2, 3 if coloured else 1))
    if rng.random() < 0.3:
        shades = shades[::-1]
    paper, ink = (tuple(int(level) for level in np.broadcast_to(shade, 3)) for shade in shades)
    page = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default_imagefont()
    if rng.random() < 0.3:
        corner, size = rng.integers(0, side // 2, 2), rng.integers(side // 4, side, 2)
        draw.rectangle((*corner.tolist(), *(corner + size).tolist()), ink if rng.random() < 0.5 else None, ink)
    characters = list(string.ascii_letters + string.digits + string.punctuation + " " * 12)
    top = int(rng.integers(0, 8))
    while top < side:
        draw.text((int(rng.integers(0, 6)), top), "".join(rng.choice(characters, side // 5)), ink, font)
        top += int(rng.integers(11, 18))
    for _ in range(rng.integers(0, 4)):
        draw.line(tuple(rng.integers(0, side, 4).tolist()), ink, width=int(rng.integers(1, 3)))
    return np.asarray(page)


def _parted(found: Sequence[tuple[str, Pixels8]], scale: int, notes: Sequence[str]) -> CalibrationPictures:
    """Some held out with their truths, where there are enough to spare them."""
    judged = found[HELD_OUT - 1 :: HELD_OUT][:HELD_OUT_MOST] if len(found) >= FEW else []
    names = {name for name, _ in judged}
    pictures = tuple(picture for name, picture in found if name not in names)
    held_out = tuple(_with_truth(name, picture, scale) for name, picture in judged)
    return CalibrationPictures(pictures, _made_up(scale, ADDED_ROUNDS), held_out, tuple(notes))


def _made_up(scale: int, rounds: int) -> dict[str, tuple[Pixels8, ...]]:
    """EDGES and MADE_UP; none of those that precision is judged by."""
    images = [each for index in range(rounds) for each in generated_images(scale, variant=index + 1) if not each.stress]
    found: dict[str, list[Pixels8]] = {EDGES: [], MADE_UP: []}
    for each in images:
        found[EDGES if each.name == "edges" else MADE_UP].append(each.low if each.high is None else each.high)
    return {kind: tuple(pictures) for kind, pictures in found.items()}


def _with_truth(name: str, picture: Pixels8, scale: int) -> VerifyImage:
    """A photograph as the truth, and reduced as the input."""
    rows, columns = (size // scale for size in picture.shape[:2])
    high = picture[: rows * scale, : columns * scale]
    low = Image.fromarray(high).resize((columns, rows), Image.Resampling.BICUBIC)
    return VerifyImage(name, np.asarray(low), high)


def _read(path: Path) -> Pixels8 | None:
    try:
        with Image.open(path) as image:
            picture = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError):
        return None
    top, left = (max(0, (size - LARGEST_SIDE) // 2) for size in picture.shape[:2])
    return picture[top : top + LARGEST_SIDE, left : left + LARGEST_SIDE]


def _distinct(pictures: Sequence[Pixels8]) -> int:
    """How many different pictures there are, by their thumbnails; counted up to FEW."""
    seen: list[NDArray[np.float64]] = []
    for picture in pictures:
        small = np.asarray(Image.fromarray(picture).resize((8, 8), Image.Resampling.BOX), np.float64)
        if all(np.abs(small - other).mean() >= ALIKE_LEVELS for other in seen):
            seen.append(small)
            if len(seen) >= FEW:
                break
    return len(seen)
