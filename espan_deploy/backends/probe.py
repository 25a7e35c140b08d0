"""The images on which something is found out about a model: always the same, and made up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

LINES = ("Text and lines", "0123456789 (a)", "The quick brown", "fox jumps over", "the lazy dog.", "HEAD, next: x=1")

LINE_HEIGHT = 15

LEAST_PAGE = 96
"""Side of the smallest page that everything fits on; of smaller ones its corner is taken."""


def made_up_photograph(side: int, multiple: int) -> Image:
    """(H, W, 3): gradients, edges, and texture with a photograph's spectrum."""
    side += -side % multiple
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij"))
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, side, side))) / frequency, axes=(1, 2)).real
    noise /= noise.std()
    planes = 0.5 + 0.15 * noise + 0.3 * np.stack([x - 0.5, y - 0.5, x - y])
    planes[:, (x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.02] += 0.4
    planes[:, (np.abs(x + y - 1.3) < 0.03)] = 0.05
    return np.ascontiguousarray((planes.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def made_up_page(side: int, multiple: int) -> Image:
    """(H, W, 3): as on a screenshot or a scan, text, rules and boxes, every edge as hard as pixels allow.

    Black and white only: where saturated colours meet, networks trained on photographs break down in any precision.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    asked = side + -side % multiple
    side = max(asked, LEAST_PAGE)
    page = Pillow.new("L", (side, side), 255)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default_imagefont()  # of bits: the same with every version of FreeType
    for index in range(side // 2 // LINE_HEIGHT):
        draw.text((3, 3 + index * LINE_HEIGHT), "  ".join([LINES[index % len(LINES)]] * (1 + side // 96)), 0, font)
    middle = side // 2
    draw.rectangle((0, middle, side, middle + LINE_HEIGHT), 0)
    draw.text((3, middle + 2), LINES[2], 255, font)
    top, bottom = middle + LINE_HEIGHT + 4, side - 5
    draw.rectangle((4, top, side // 3, bottom), outline=0)
    draw.rectangle((side // 3 + 8, top, side // 2, bottom), 0)
    draw.line((side // 2 + 6, top, side - 6, bottom), 0)
    draw.line((0, bottom + 2, side, bottom + 2), 90)
    return np.repeat(np.asarray(page)[:asked, :asked, None], 3, axis=2)


PROBES = {"photograph": made_up_photograph, "page of text": made_up_page}
"""By name, what a precision is judged on: smooth and rough, and as hard as it gets."""
