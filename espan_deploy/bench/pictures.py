"""A few upscaled images for the page: before, after, the truth, and what differs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from espan_deploy.bench.contenders import Contender

SIDE = 128
"""Largest side of the low-resolution part that is shown: pages stay small."""

MAX_MODELS = 4

WEBP_QUALITY = 90

GAIN = 6
"""Differences are shown this many times as strong."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Layer:
    """One version of a picture. difference: from the reference, as a map, where it is not the reference itself."""

    name: str
    pixels: Pixels
    difference: Pixels | None = None


@dataclass
class Picture:
    """A part of an image in several versions of one size."""

    name: str
    difference_to: str
    layers: list[Layer] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the page, pixels as data URIs."""
        height, width = self.layers[0].pixels.shape[:2]
        return {
            "name": self.name,
            "width": width,
            "height": height,
            "difference_to": f"to {self.difference_to}, {GAIN} times as strong",
            "caption": f"a part of {width}x{height} pixels, compressed for this page; figures are of the exact pixels.",
            "layers": [
                {
                    "name": layer.name,
                    "src": _data_uri(layer.pixels),
                    "difference": None if layer.difference is None else _data_uri(layer.difference),
                }
                for layer in self.layers
            ],
        }


def make_picture(name: str, low: Pixels, high: Pixels | None, contenders: Sequence[Contender]) -> Picture:
    """The middle of an image, upscaled by bicubic interpolation and by each model, the truth last."""
    scale = contenders[0].model.file.description.scale
    rows, columns = low.shape[:2]
    top, left = max(0, (rows - SIDE) // 2), max(0, (columns - SIDE) // 2)
    height, width = min(rows, SIDE), min(columns, SIDE)
    inner = (slice(top * scale, (top + height) * scale), slice(left * scale, (left + width) * scale))

    bicubic = np.asarray(Image.fromarray(low).resize((columns * scale, rows * scale), Image.Resampling.BICUBIC))
    truth = None if high is None or high[inner].shape != bicubic[inner].shape else high[inner]
    reference = bicubic[inner] if truth is None else truth
    picture = Picture(name, "bicubic" if truth is None else "the truth")
    versions = [("Bicubic", bicubic)]
    for contender in _one_each(contenders):
        versions.append((contender.model.name, contender.runner.infer(low[None])[0]))
    for title, pixels in versions:
        part = np.ascontiguousarray(pixels[inner])
        same = part is reference or np.array_equal(part, reference)
        picture.layers.append(Layer(title, part, None if same else _difference(part, reference)))
    if truth is not None:
        picture.layers.append(Layer("Truth", truth))
    return picture


def _one_each(contenders: Sequence[Contender]) -> list[Contender]:
    """The first contender of each model."""
    return list({c.model.name: c for c in reversed(contenders)}.values())[::-1][:MAX_MODELS]


def _difference(ours: Pixels, theirs: Pixels) -> Pixels:
    """Absolute difference, mean of the channels, from black through red and yellow to white."""
    strength = np.abs(ours.astype(np.float32) - theirs).mean(axis=2) * (GAIN / 255)
    ramp = [strength * 2.2, strength * 1.7 - 0.55, strength * 2.0 - 1.3]
    heat: Pixels = (np.clip(np.stack(ramp, -1), 0, 1) * 255).astype(np.uint8)
    return heat


def _data_uri(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
