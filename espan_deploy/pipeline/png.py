"""PNG written in strips: chunks, and one compressed stream made of pieces that were compressed apart.

Each row is stored as its difference to the one above, which numpy computes at the speed of memory, and compressed by
ISA-L at its level 1: a photograph takes less room than by zlib's, in a tenth of the time, and neither holds the
interpreter's lock. Strips end on byte boundaries and their checksums are combined, so that several can be compressed
at once and no more than they are ever held.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SIDE = 2**31 - 1
GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6
COLOR_TYPES = {1: GREY, 2: GREY_ALPHA, 3: RGB, 4: RGBA}
ADLER_BASE = 65521
STRIP_BYTES = 4 << 20
"""Raw bytes per strip. Smaller ones begin the compressor's search anew more often; larger ones are new memory."""

METERS_PER_INCH = 0.0254
UP_FILTER = 2
Buffer = bytes | memoryview


def chunk(kind: bytes, *data: Buffer) -> list[Buffer]:
    """One PNG chunk, its data in parts, as what to write one after the other: nothing is copied."""
    crc = zlib.crc32(kind)
    for part in data:
        crc = _isal().crc32(part, crc)
    return [struct.pack(">I", sum(map(len, data))), kind, *data, struct.pack(">I", crc)]


def head(
    width: int,
    height: int,
    channels: int,
    depth: int,
    *,
    icc: bytes = b"",
    exif: bytes = b"",
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """Everything in front of the image data. exif: the TIFF structure, without a prefix."""
    parts: list[Buffer] = [SIGNATURE]
    parts += chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, COLOR_TYPES[channels], 0, 0, 0))
    if icc:
        parts += chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if dpi is not None:
        x, y = (round(value / METERS_PER_INCH) for value in dpi)
        parts += chunk(b"pHYs", struct.pack(">IIB", x, y, 1))
    if exif:
        parts += chunk(b"eXIf", exif)
    return b"".join(parts)


def tail() -> bytes:
    """The end of the file."""
    return b"".join(chunk(b"IEND"))


class Stream:
    """The compressed stream, strip after strip; give each strip once, in order."""

    def __init__(self) -> None:
        self._adler = 1
        self._started = False

    def chunk(self, piece: Piece) -> list[Buffer]:
        """The IDAT chunk of one piece, in parts."""
        self._adler = _combine(self._adler, piece.adler, piece.raw_bytes)
        body = [*([] if self._started else [b"\x78\x01"]), *piece.deflate]
        self._started = True
        return chunk(b"IDAT", *body)

    def end(self) -> list[Buffer]:
        """The IDAT chunk behind the last piece's: an empty block, marked last, and the checksum."""
        return chunk(b"IDAT", b"\x01\x00\x00\xff\xff", struct.pack(">I", self._adler))


class Piece:
    """A strip's filtered bytes as deflate blocks, in parts, none marked last, ending on a byte boundary."""

    def __init__(self, deflate: list[Buffer], adler: int, raw_bytes: int) -> None:
        self.deflate, self.adler, self.raw_bytes = deflate, adler, raw_bytes


def strips(pixels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut (h, w) or (h, w, C) pixels into strips of about STRIP_BYTES, as views."""
    rows = max(1, STRIP_BYTES // max(1, pixels[0].nbytes))
    for top in range(0, len(pixels), rows):
        yield pixels[top : top + rows]


def deflated(pixels: NDArray[Any], level: int) -> Piece:
    """A strip of any depth and number of channels. level: zlib's; at 1, ISA-L compresses where it is installed."""
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"), copy=False))
    raw = rows.view(np.uint8).reshape(len(pixels), -1)
    filtered = np.empty((raw.shape[0], raw.shape[1] + 1), np.uint8)
    # The strip's first row stands for itself, so that strips can be compressed at once.
    filtered[0, 0] = 0
    filtered[0, 1:] = raw[0]
    filtered[1:, 0] = UP_FILTER
    np.subtract(raw[1:], raw[:-1], out=filtered[1:, 1:])
    compressor = _compressor(level)
    body: list[Buffer] = [compressor.compress(filtered.data), compressor.flush(zlib.Z_FULL_FLUSH)]
    return Piece(body, _isal().adler32(filtered.data), filtered.size)


def _compressor(level: int) -> Any:
    """Of raw deflate."""
    module = _isal() if level == 1 else zlib
    return module.compressobj(level, zlib.DEFLATED, -15)


@cache
def _isal() -> Any:
    """ISA-L, whose checksums take a fifth of zlib's time as well."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib  # on a platform it has no wheel for: the same file in ten times the time
    return isal_zlib


def _combine(first: int, second: int, second_bytes: int) -> int:
    """Adler-32 of two pieces' concatenation from their own."""
    low1, high1 = first & 0xFFFF, first >> 16
    low2, high2 = second & 0xFFFF, second >> 16
    low = (low1 + low2 - 1) % ADLER_BASE
    high = (high1 + high2 + (low1 - 1) * second_bytes) % ADLER_BASE
    return high << 16 | low
