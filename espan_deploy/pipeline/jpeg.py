"""JPEG written in strips: one file whose scan is made of pieces that were compressed apart.

A restart marker lets the scan start afresh. With an interval of exactly a strip, a strip compressed as an image of its
own has the very bytes that belong between two of them: the same coefficients as in the whole image, whatever quality.
Any reader takes the result (ITU-T T.81, B.2.4.4 and E.1.4), and no more than a few strips are ever held.

The strips are compressed by libjpeg-turbo: through imagecodecs, which holds no lock meanwhile, where that is installed,
else through Pillow, which holds the interpreter's. Both give the same pixels. (simplejpeg does not: below quality 96 it
takes libjpeg's fast transform, which costs a decibel.)
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_SIDE = 65_535
MAX_EXIF = 65_533
"""What fits one segment."""

FULL_CHROMA = 0
"""4:4:4: the eye would forgive halved chroma, the next editing step does not."""

BLOCK = 8
"""Rows and columns of what is coded at once."""

MAX_INTERVAL = 65_535
"""Blocks between two restart markers."""

STRIP_BYTES = 2 << 20
END = b"\xff\xd9"
START = b"\xff\xd8"
START_OF_SCAN, RESTART_INTERVAL = 0xDA, 0xDD
STARTS_OF_FRAME, APPLICATION, COMMENT = range(0xC0, 0xC3), range(0xE0, 0xF0), 0xFE

Compressor = Callable[[NDArray[np.uint8], int], bytes]
"""(h, w, 3) or (h, w) bytes and a quality -> a baseline JPEG file with full chroma and the standard's own codes."""


def strip_rows(width: int, channels: int) -> int:
    """Rows per strip, for about STRIP_BYTES of pixels."""
    across = -(-width // BLOCK)
    rows = min(STRIP_BYTES // (width * channels * BLOCK), MAX_INTERVAL // across)
    return max(1, rows) * BLOCK


@cache
def can_be_spliced() -> bool:
    """Whether the encoder uses the same tables for every image, as all but MozJPEG do."""
    ramp = np.asarray(Image.linear_gradient("L"))
    heads = [with_height(taken_apart(compressor()(pixels, 90))[0], 1) for pixels in (ramp, np.zeros_like(ramp))]
    return heads[0] == heads[1]


@cache
def compressor() -> Compressor:
    """The fastest there is."""
    try:
        from imagecodecs import jpeg8_encode
    except ImportError:
        return _by_pillow

    def encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
        # It refuses the strides of some views of a single row or column, which count as contiguous all the same.
        plain = pixels if min(pixels.shape[:2]) > 1 else np.array(pixels, order="C")
        return bytes(jpeg8_encode(np.ascontiguousarray(plain), level=quality, subsampling="444"))

    return encode


def _by_pillow(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=FULL_CHROMA)
    return buffer.getvalue()


def taken_apart(file: bytes) -> tuple[bytes, bytes]:
    """A file's head, up to its scan, and the scan without the end marker."""
    position = len(START)
    while file[position + 1] != START_OF_SCAN:
        position += 2 + _length(file, position)
    position += 2 + _length(file, position)
    return file[:position], file[position : -len(END)]


def head_of_strips(strip: bytes, height: int, blocks: int, **described: Any) -> bytes:
    """The head of a whole file from that of its first strip.

    blocks: of a strip, 0 where it is the only one. described: Pillow's arguments for what a head tells: profile, EXIF,
    resolution; Pillow writes these.
    """
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "JPEG", **described)
    told = [segment for kind, segment in _segments(taken_apart(buffer.getvalue())[0]) if _tells(kind)]
    coded = [segment for kind, segment in _segments(with_height(strip, height)) if not _tells(kind)]
    if blocks:
        coded.insert(-1, struct.pack(">BBHH", 0xFF, RESTART_INTERVAL, 4, blocks))
    return b"".join([START, *told, *coded])


def _tells(kind: int) -> bool:
    return kind in APPLICATION or kind == COMMENT


def _segments(head: bytes) -> list[tuple[int, bytes]]:
    position, found = len(START), []
    while position < len(head):
        end = position + 2 + _length(head, position)
        found.append((head[position + 1], head[position:end]))
        position = end
    return found


def restart_marker(number: int) -> bytes:
    """What stands in front of a strip, counted from 0, but the first."""
    return bytes([0xFF, 0xD0 + (number - 1) % 8])


def with_height(head: bytes, height: int) -> bytes:
    """A strip's head as that of an image of this height."""
    position = len(START)
    while head[position + 1] not in STARTS_OF_FRAME:
        position += 2 + _length(head, position)
    return head[: position + 5] + struct.pack(">H", height) + head[position + 7 :]


def _length(file: bytes, position: int) -> int:
    (length,) = struct.unpack_from(">H", file, position + 2)
    return int(length)
