"""Small drawings no camera takes: text, lines, checkerboards and noise, one pixel fine and of full contrast.

A network that saw photographs alone enlarges such pictures into coloured rubble, for its blocks multiply and nothing
ever told them where to stop. What it should make of them is not known either; their bicubic enlargement is what nobody
can complain of.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-+()%"


def drawing(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(side, side, 3) uint8 of one of six kinds: noise of every colour, and five in two colours, half of the time black
    and white."""
    colours = rng.integers(0, 256, (2, 3)) if rng.random() < 0.5 else np.array([[0] * 3, [255] * 3])
    if rng.random() < 0.5:
        colours = colours[::-1]
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
    image: NDArray[np.uint8] = np.where(mask[..., None], colours[1], colours[0]).astype(np.uint8)
    return image


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


def enlarged(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Bicubic, clipped."""
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
