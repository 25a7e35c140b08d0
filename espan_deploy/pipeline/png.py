"""PNG written in strips: chunks, and one compressed stream made of pieces that were compressed apart.

fpng compresses an image in a tenth of zlib's time, but only whole images, and without colour profile or EXIF. Here
each strip is compressed as an image of its own and its stream is spliced into the file's: a strip's deflate block
loses its mark of being the last, an empty stored block brings the next one to a byte boundary, and the checksums of
all strips are combined. Any PNG reader takes the result, and no more than a strip is ever held.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SIDE = 2**31 - 1
GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6
COLOR_TYPES = {1: GREY, 2: GREY_ALPHA, 3: RGB, 4: RGBA}
ADLER_BASE = 65521
STRIP_BYTES = 4 << 20
"""Raw bytes per strip. fpng holds the interpreter's lock meanwhile: 8 ms or so at this size. What it allocates for
larger ones is new memory each time, for a sixth more time; smaller ones pay for their heads."""

METERS_PER_INCH = 0.0254
UP_FILTER = 2
CODE_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
END_OF_BLOCK = 256


Buffer = bytes | memoryview


def chunk(kind: bytes, *data: Buffer) -> list[Buffer]:
    """One PNG chunk, its data in parts, as what to write one after the other: nothing is copied."""
    crc = zlib.crc32(kind)
    for part in data:
        crc = zlib.crc32(part, crc)
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
    """A strip through zlib: any depth and number of channels. Each row is stored as its difference to the one above."""
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"), copy=False))
    raw = rows.view(np.uint8).reshape(len(pixels), -1)
    filtered = np.empty((raw.shape[0], raw.shape[1] + 1), np.uint8)
    # The strip's first row stands for itself, so that strips can be compressed at once.
    filtered[0, 0] = 0
    filtered[0, 1:] = raw[0]
    filtered[1:, 0] = UP_FILTER
    np.subtract(raw[1:], raw[:-1], out=filtered[1:, 1:])
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    body: list[Buffer] = [compressor.compress(filtered.data), compressor.flush(zlib.Z_FULL_FLUSH)]
    return Piece(body, zlib.adler32(filtered.data), filtered.size)


def fast_deflated(pixels: NDArray[Any], encode: Any) -> Piece:
    """A strip of (h, w, 3) or (h, w, 4) bytes through fpng's encoder."""
    height, width, channels = pixels.shape
    file = encode(np.ascontiguousarray(pixels), width, height, channels)
    stream = _image_data(file)
    (adler,) = struct.unpack(">I", stream[-4:])
    return Piece(_open_ended(stream[2:-4]), adler, height * (width * channels + 1))


def _image_data(file: bytes) -> memoryview:
    position, parts = len(SIGNATURE), []
    view = memoryview(file)
    while position < len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        if kind == b"IDAT":
            parts.append(view[position + 8 : position + 8 + length])
        position += 12 + length
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _combine(first: int, second: int, second_bytes: int) -> int:
    """Adler-32 of two pieces' concatenation from their own."""
    low1, high1 = first & 0xFFFF, first >> 16
    low2, high2 = second & 0xFFFF, second >> 16
    low = (low1 + low2 - 1) % ADLER_BASE
    high = (high1 + high2 + (low1 - 1) * second_bytes) % ADLER_BASE
    return high << 16 | low


def _open_ended(deflate: memoryview) -> list[Buffer]:
    """fpng's stream with no block marked last, ending on a byte boundary.

    It is either one dynamic block, or stored blocks where the strip does not compress.
    """
    kind = deflate[0] >> 1 & 3
    if kind == 0:
        position = 0
        while not deflate[position] & 1:
            position += 5 + struct.unpack_from("<H", deflate, position + 1)[0]
        return [deflate[:position], bytes([deflate[position] & 0xFE]), deflate[position + 1 :]]
    if kind != 2 or not deflate[0] & 1:
        raise ValueError("not a stream of fpng's")
    # Its end-of-block code has a known number of zeros behind its last one; what follows in the byte is padding.
    last = len(deflate) - 1
    while deflate[last] == 0:
        last -= 1
    end = last * 8 + deflate[last].bit_length() + _zeros_of_end_code(bytes(deflate[:400]))
    size = (end + 3 + 7) // 8  # the stored block's three header bits, then to the next byte
    return [bytes([deflate[0] & 0xFE]), deflate[1:size], b"\0" * (size - len(deflate)), b"\x00\x00\xff\xff"]


def _zeros_of_end_code(stream: bytes) -> int:
    """How many zero bits end the end-of-block code of a dynamic block."""
    lengths = _literal_code_lengths(stream)
    size = lengths[END_OF_BLOCK]
    code = 0
    for length in range(1, size + 1):
        code = code << 1
        if length < size:
            code += lengths.count(length)
    code += sum(1 for symbol in range(END_OF_BLOCK) if lengths[symbol] == size)
    if code == 0:
        raise ValueError("an end-of-block code of zeros only")
    return (code & -code).bit_length() - 1


def _literal_code_lengths(stream: bytes) -> list[int]:
    bits = int.from_bytes(stream, "little")
    position = 3

    def take(count: int) -> int:
        nonlocal position
        value = bits >> position & ((1 << count) - 1)
        position += count
        return value

    literals, distances, used = take(5) + 257, take(5) + 1, take(4) + 4
    meta = [0] * 19
    for symbol in CODE_LENGTH_ORDER[:used]:
        meta[symbol] = take(3)
    codes = _canonical(meta)
    lengths: list[int] = []
    while len(lengths) < literals + distances:
        code, size = 0, 0
        while (size, code) not in codes:
            code, size = code << 1 | take(1), size + 1
            if size > 7:
                raise ValueError("a damaged code")
        symbol = codes[size, code]
        if symbol < 16:
            lengths.append(symbol)
        elif symbol == 16:
            lengths += [lengths[-1]] * (3 + take(2))
        else:
            lengths += [0] * (3 + take(3) if symbol == 17 else 11 + take(7))
    return lengths[:literals]


def _canonical(lengths: list[int]) -> dict[tuple[int, int], int]:
    codes: dict[tuple[int, int], int] = {}
    code = 0
    for size in range(1, 8):
        for symbol, length in enumerate(lengths):
            if length == size:
                codes[size, code] = symbol
                code += 1
        code <<= 1
    return codes
