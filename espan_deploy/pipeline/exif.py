"""EXIF edited in place: a few values change, every other byte stays, maker notes with their offsets included."""

from __future__ import annotations

import struct

from PIL import ExifTags, Image

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, EXIF_IFD = 0x0112, 0x011A, 0x011B, 0x8769
EXIF_WIDTH, EXIF_HEIGHT = 0xA002, 0xA003
SHORT, LONG, RATIONAL = 3, 4, 5
PREFIX = b"Exif\x00\x00"
NORMAL = 1


def reset_orientation(exif: bytes) -> bytes:
    """The block with its orientation set to normal; unreadable ones come back unchanged."""
    return _edit(exif, {ORIENTATION: NORMAL}, 1)


def resized(exif: bytes, width: int, height: int, scale: int) -> bytes:
    """The block with the new size in pixels, and its resolution times ``scale``."""
    return _edit(exif, {EXIF_WIDTH: width, EXIF_HEIGHT: height}, scale)


def is_readable(exif: bytes) -> bool:
    """Whether the block can be taken apart; what cannot may still be copied."""
    block = Image.Exif()
    try:
        block.load(exif)
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            block.get_ifd(directory)
    except Exception:  # damaged blocks make Pillow raise nearly anything
        return False
    return True


def without_prefix(exif: bytes) -> bytes:
    """The TIFF structure itself, as PNG's eXIf chunk wants it."""
    return exif[len(PREFIX) :] if exif.startswith(PREFIX) else exif


def with_prefix(exif: bytes) -> bytes:
    """The block as a JPEG segment holds it."""
    return exif if exif.startswith(PREFIX) else PREFIX + exif


def _edit(exif: bytes, values: dict[int, int], scale: int) -> bytes:
    body = bytearray(without_prefix(exif))
    if bytes(body[:2]) not in (b"II", b"MM"):
        return exif
    order = "<" if body[:2] == b"II" else ">"
    try:
        _edit_directory(body, order, struct.unpack_from(order + "I", body, 4)[0], values, scale, depth=0)
    except struct.error:
        return exif
    return exif[: len(exif) - len(body)] + bytes(body)


def _edit_directory(
    body: bytearray, order: str, offset: int, values: dict[int, int], scale: int, *, depth: int
) -> None:
    (count,) = struct.unpack_from(order + "H", body, offset)
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, _ = struct.unpack_from(order + "HHI", body, entry)
        if tag in values and kind in (SHORT, LONG):
            if kind == LONG or values[tag] < 1 << 16:
                struct.pack_into(order + ("H" if kind == SHORT else "I"), body, entry + 8, values[tag])
        elif tag in (X_RESOLUTION, Y_RESOLUTION) and kind == RATIONAL and scale != 1:
            (at,) = struct.unpack_from(order + "I", body, entry + 8)
            (numerator,) = struct.unpack_from(order + "I", body, at)
            if numerator * scale < 1 << 32:
                struct.pack_into(order + "I", body, at, numerator * scale)
        elif tag == EXIF_IFD and depth == 0:
            (inner,) = struct.unpack_from(order + "I", body, entry + 8)
            _edit_directory(body, order, inner, values, scale, depth=1)
