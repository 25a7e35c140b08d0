"""How a file's pixels were kept until now: whole, or through a compression that left its traces.

Read from the file's head, never from its pixels: JPEG names its quantisation, WebP, JPEG XL and TIFF their coding.
A PNG that was a JPEG before cannot be told by its head.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image

from espan_deploy.pipeline.jxl import coded_lossily

IJG_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""The luma quantisation of ITU-T T.81, table K.1, which libjpeg calls quality 50."""

JPEG_IN_TIFF = ("jpeg", "tiff_jpeg", "webp")
"""Pillow's names of TIFF compressions that lose something."""

LOSSY_FORMATS = {"AVIF": "AVIF", "HEIF": "HEIC"}
"""Both can be lossless, and hardly ever are."""


@dataclass(frozen=True)
class Origin:
    """lossy: whether the pixels went through a lossy compression in this file. told_by: what in the file says so.

    jpeg_quality: on libjpeg's scale of 1 to 100, the nearest for other encoders' tables; None where it is no JPEG.
    newer: whether it is a lossy coding of stills newer than JPEG: of unknown quality, but usually a good one.
    """

    lossy: bool
    told_by: str
    jpeg_quality: int | None = None
    newer: bool = False


def origin_of(image: Image.Image, head: bytes) -> Origin:
    """Of an opened image and the first bytes of its file, b"" where they are gone; pixels are not read."""
    kind = image.format or ""
    if kind in ("JPEG", "MPO"):
        return _jpeg_origin(getattr(image, "quantization", {}))
    if kind == "WEBP":
        return _either("WebP", _webp_is_lossy, head)
    if kind == "JXL":
        return _either("JPEG XL", coded_lossily, head)
    if kind == "TIFF":
        compression = str(image.info.get("compression", "raw"))
        lossy = compression in JPEG_IN_TIFF
        return Origin(lossy, f"TIFF with {compression} compression" if lossy else "TIFF")
    if kind in LOSSY_FORMATS:
        return Origin(True, LOSSY_FORMATS[kind], newer=True)
    return Origin(False, f"{kind}, lossless" if kind else "nothing says how it was kept")


def _either(name: str, is_lossy: Callable[[bytes], bool], head: bytes) -> Origin:
    """Of a format that the head alone tells; lossy where that is gone, as it is more often than not."""
    if not head:
        return Origin(True, name, newer=True)
    lossy = is_lossy(head)
    return Origin(lossy, f"lossy {name}" if lossy else f"lossless {name}", newer=lossy)


def _jpeg_origin(tables: dict[int, Sequence[int]]) -> Origin:
    if not tables:
        return Origin(True, "JPEG")
    quality, exact = jpeg_quality(tables[min(tables)])
    return Origin(True, f"JPEG of quality {quality}" if exact else f"JPEG of about quality {quality}", quality)


def jpeg_quality(luma: Sequence[int]) -> tuple[int, bool]:
    """The quality whose luma table libjpeg makes is nearest to this one, and whether it is that table.

    luma: 64 quantisation steps, in any order.
    """
    steps = sorted(luma)
    distances: list[tuple[int, int]] = []
    for quality in range(100, 0, -1):
        distances.append((sum(abs(a - b) for a, b in zip(steps, _ijg_steps(quality), strict=False)), quality))
    distance, quality = min(distances, key=lambda pair: pair[0])
    return quality, distance == 0


@cache
def _ijg_steps(quality: int) -> list[int]:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sorted(min(255, max(1, (step * percent + 50) // 100)) for row in IJG_LUMA for step in row)


def _webp_is_lossy(head: bytes) -> bool:
    """By the first chunk of pixels: VP8 is lossy, VP8L is not. Told lossy where none is in reach."""
    position = 12
    while position + 8 <= len(head):
        chunk = head[position : position + 4]
        if chunk in (b"VP8 ", b"VP8L"):
            return chunk == b"VP8 "
        if chunk == b"ANMF":
            position += 8 + 16
            continue
        (size,) = struct.unpack_from("<I", head, position + 4)
        position += 8 + size + size % 2
    return True
