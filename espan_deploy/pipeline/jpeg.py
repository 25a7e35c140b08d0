"""JPEG written in strips: one file whose scan is made of pieces that were compressed apart.

Baseline JPEG with a restart marker behind each row of 8x8 blocks starts afresh there, so a strip compressed as an image
of its own has the very bytes that the whole image would have in its place: the same coefficients, whatever quality.
Markers count to eight, which makes strips of a multiple of 64 rows fit behind one another. Any reader takes the result
(ITU-T T.81, E.1.4 and F.1.2.3), and no more than a strip is ever held.
"""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import Any

from PIL import Image

MAX_SIDE = 65_535
MAX_EXIF = 65_533
"""What fits one segment."""

FULL_CHROMA = 0
"""4:4:4: the eye would forgive halved chroma, the next editing step does not."""

MARKERS_ROWS = 64
STRIP_BYTES = 4 << 20
BETWEEN_STRIPS = b"\xff\xd7"
"""The eighth restart marker."""

END = b"\xff\xd9"
STARTS_OF_FRAME, START_OF_SCAN = range(0xC0, 0xC3), 0xDA


def strip_rows(row_bytes: int) -> int:
    """Rows per strip, for about STRIP_BYTES of pixels."""
    return max(1, STRIP_BYTES // (row_bytes * MARKERS_ROWS)) * MARKERS_ROWS


@cache
def can_be_spliced() -> bool:
    """Whether this Pillow's encoder uses the same tables for every image, as all but MozJPEG do."""
    ramp = Image.linear_gradient("L")
    heads = [with_height(compressed(image, 90)[0], 1) for image in (ramp, Image.new("L", ramp.size))]
    return heads[0] == heads[1]


def compressed(strip: Image.Image, quality: int, **head: Any) -> tuple[bytes, bytes]:
    """A strip's head, ready but for the height, and its part of the scan.

    head: Pillow's arguments for what goes there: profile, EXIF, resolution.
    """
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=quality, subsampling=FULL_CHROMA, restart_marker_rows=1, **head)
    file = buffer.getvalue()
    position = 2
    while file[position + 1] != START_OF_SCAN:
        position += 2 + _length(file, position)
    position += 2 + _length(file, position)
    return file[:position], file[position : -len(END)]


def with_height(head: bytes, height: int) -> bytes:
    """A strip's head as that of an image of this height."""
    position = 2
    while head[position + 1] not in STARTS_OF_FRAME:
        position += 2 + _length(head, position)
    return head[: position + 5] + struct.pack(">H", height) + head[position + 7 :]


def _length(file: bytes, position: int) -> int:
    (length,) = struct.unpack_from(">H", file, position + 2)
    return int(length)
