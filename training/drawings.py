"""Pictures no camera takes, as training pairs.

Text, lines, checkerboards and noise, one low-resolution pixel fine and of full contrast: a network that saw
photographs alone enlarges such pictures into coloured rubble, for its blocks multiply and nothing ever told them where
to stop. What it should make of them is not known either; their bicubic enlargement is what nobody can complain of.

Pages of letters, shapes and stripes, drawn large and made small as photographs are: of these the truth is known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from training.resize import shrink

Pixels = NDArray[np.uint8]

MARGIN = 4
"""Low-resolution pixels around a page, so that what is made small sees what is beside it."""

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-+()%"


def drawn_pair(side: int, scale: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """(side, side, 3) and its target, (side * scale, side * scale, 3): a drawing or a page, half of the time each."""
    if rng.random() < 0.5:
        return page(side, scale, rng)
    low = drawing(side, rng)
    return low, enlarged(low, scale)


def page(side: int, scale: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """The same of one of three kinds: letters, shapes, stripes."""
    whole = (side + 2 * MARGIN) * scale
    high = (_letters, _shapes, _stripes)[rng.integers(3)](whole, rng)
    low = shrink(high, scale)
    edge = MARGIN * scale
    return low[MARGIN:-MARGIN, MARGIN:-MARGIN], high[edge:-edge, edge:-edge]


def _letters(side: int, rng: np.random.Generator) -> Pixels:
    size = int(rng.integers(12, 64))
    font = ImageFont.load_default(size)
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    for top in range(int(rng.integers(-size, size)), side, round(size * rng.uniform(1.0, 1.6))):
        line = "".join(rng.choice(list(LETTERS + " " * 12), 3 * side // size))
        pen.text((int(rng.integers(-size, size)), top), line, fill=255, font=font)
    if rng.random() < 0.3:
        canvas = canvas.rotate(rng.uniform(-90, 90), Image.Resampling.BICUBIC)
    return _mixed(np.asarray(canvas, np.float32) / 255, rng)


def _shapes(side: int, rng: np.random.Generator) -> Pixels:
    colours = [tuple(int(v) for v in colour) for colour in rng.integers(0, 256, (12, 3))]
    canvas = Image.new("RGB", (2 * side, 2 * side), colours[0])
    pen = ImageDraw.Draw(canvas)
    for colour in colours[1 : int(rng.integers(3, 12))]:
        corners = rng.integers(-side // 2, 5 * side // 2, (int(rng.integers(3, 6)), 2))
        low, high = corners[:2].min(0), corners[:2].max(0)
        kind = rng.integers(3)
        if kind == 0:
            pen.polygon([(int(x), int(y)) for x, y in corners], fill=colour)
        elif kind == 1:
            pen.ellipse((*map(int, low), *map(int, high)), fill=colour)
        else:
            pen.line([int(v) for v in corners[:2].ravel()], fill=colour, width=int(rng.integers(2, 40)))
    return np.asarray(canvas.reduce(2))


def _stripes(side: int, rng: np.random.Generator) -> Pixels:
    """Edges two pixels soft; a period of at least three low-resolution pixels at x4, that they can be told apart."""
    period, angle, phase = rng.uniform(12, 80), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices((side, side), np.float32)
    wave = np.sin(2 * np.pi / period * (columns * np.cos(angle) + rows * np.sin(angle)) + phase)
    threshold = rng.uniform(-0.7, 0.7)
    return _mixed(np.clip(0.5 + (wave - threshold) * period / (4 * np.pi), 0, 1), rng)


def _mixed(mask: NDArray[np.float32], rng: np.random.Generator) -> Pixels:
    """Two colours by how much of each; half of the time black and white or nearly so."""
    colours = rng.integers(0, 256, (2, 3)) if rng.random() < 0.5 else np.array([[20] * 3, [235] * 3])
    if rng.random() < 0.5:
        colours = colours[::-1]
    mixed: Pixels = (colours[0] + mask[..., None] * (colours[1] - colours[0]) + 0.5).astype(np.uint8)
    return mixed


def drawing(side: int, rng: np.random.Generator) -> Pixels:
    """(side, side, 3) uint8 of one of six kinds: noise of every colour, and five in two colours."""
    colours = _two_colours(rng)
    kind = int(rng.integers(6))
    if kind == 5:
        return rng.integers(0, 256, (side, side, 3), np.uint8)
    if kind < 2:
        mask = _strokes(side, rng, text=kind == 0)
    else:
        cell = int(rng.integers(1, 4))
        rows, columns = np.indices((side, side)) // cell
        if kind == 2:
            mask = rng.random((side // cell + 1, side // cell + 1))[rows, columns] < rng.uniform(0.1, 0.9)
        else:
            slope = rng.integers(0, 2, 2) if kind == 3 else np.array([1, 1])
            mask = (rows * slope[0] + columns * slope[1]) % 2 > 0
    if kind > 1 and rng.random() < 0.5:  # a window of it, the rest flat
        top, left = rng.integers(0, side, 2)
        window = np.zeros((side, side), bool)
        window[top : top + side // 2, left : left + side // 2] = True
        mask = mask & window
    image: Pixels = np.where(mask[..., None], colours[1], colours[0]).astype(np.uint8)
    return image


def _two_colours(rng: np.random.Generator) -> NDArray[np.int64]:
    """(2, 3): a third of the time black and white, a third any, a third with every channel mostly near black or white,
    as logos have them."""
    choice = rng.integers(3)
    if choice == 0:
        return np.array([[0] * 3, [255] * 3])[:: rng.choice([-1, 1])]
    if choice == 1:
        return rng.integers(0, 256, (2, 3))
    return (rng.beta(0.5, 0.5, (2, 3)) * 255).astype(np.int64)


def _strokes(side: int, rng: np.random.Generator, *, text: bool) -> NDArray[np.bool_]:
    canvas = Image.new("1" if rng.random() < 0.5 else "L", (side, side))
    pen, white = ImageDraw.Draw(canvas), 255
    if text:
        size = int(rng.integers(8, 20))
        font = ImageFont.load_default(size)
        for top in range(int(rng.integers(-4, 4)), side, size + 2):
            line = "".join(rng.choice(list(LETTERS), side // 4))
            pen.text((int(rng.integers(-4, 4)), top), line, fill=white, font=font)
    else:
        for _ in range(int(rng.integers(2, 9))):
            ends = [int(v) for v in rng.integers(0, side, 4)]
            if rng.random() < 0.5:
                pen.line(ends, fill=white)
            else:
                pen.rectangle((*np.minimum(ends[:2], ends[2:]), *np.maximum(ends[:2], ends[2:])), outline=white)
    return np.asarray(canvas.convert("L")) > 127


def enlarged(image: Pixels, scale: int) -> Pixels:
    """Bicubic, clipped."""
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
