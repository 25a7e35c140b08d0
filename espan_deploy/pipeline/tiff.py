"""TIFF, strip by strip, in 8 or 16 bits: little-endian, deflate with horizontal differences, as every reader knows it.

Pillow writes no 16-bit colour, loses EXIF in compressed files, and wants the whole image at once.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from espan_deploy.pipeline.picture import Pixels

ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 2, 3, 4, 5, 7
PACKING = {SHORT: "H", LONG: "I", RATIONAL: "I"}
DEFLATE, DIFFERENCES = 8, 2
MIN_IS_BLACK, RGB = 1, 2
UNASSOCIATED_ALPHA = 2
INCH = 2
HEADER_BYTES = 8

PHOTOGRAPH_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
"""What a TIFF's own directory may say of the photograph; the rest of it describes the file's bytes."""


@dataclass(frozen=True)
class Strip:
    """Compressed rows."""

    data: bytes
    rows: int


ZLIB_LEVEL = 2
"""Less than half the time of zlib's own 6, for an eighth more bytes."""


def compressed(pixels: Pixels) -> Strip:
    """(h, w) or (h, w, C) rows of uint8 or uint16 as one strip."""
    samples = pixels if pixels.ndim == 3 else pixels[..., None]
    differences = samples.astype(samples.dtype.newbyteorder("<"))
    differences[:, 1:] = samples[:, 1:] - samples[:, :-1]
    return Strip(zlib.compress(differences.tobytes(), ZLIB_LEVEL), len(pixels))


class Writer:
    """Writes the strips as they come and the directory behind them. All but the last must have equally many rows."""

    def __init__(self, file: BinaryIO, width: int, height: int, channels: int, bits: int) -> None:
        self.file, self.width, self.height, self.channels, self.bits = file, width, height, channels, bits
        self.strips: list[tuple[int, int, int]] = []
        file.write(b"II*\0\0\0\0\0")
        self.position = HEADER_BYTES

    def write(self, strip: Strip) -> None:
        """Append a strip."""
        self.file.write(strip.data)
        self.strips.append((self.position, len(strip.data), strip.rows))
        self.position += len(strip.data)

    def finish(self, *, icc: bytes = b"", exif: bytes = b"", dpi: tuple[float, float] | None = None) -> None:
        """Write the directory and point the header at it."""
        colors = 1 if self.channels < 3 else 3
        tags: dict[int, tuple[int, list[int] | bytes]] = {
            256: (LONG, [self.width]),
            257: (LONG, [self.height]),
            258: (SHORT, [self.bits] * self.channels),
            259: (SHORT, [DEFLATE]),
            262: (SHORT, [RGB if colors == 3 else MIN_IS_BLACK]),
            273: (LONG, [offset for offset, _, _ in self.strips]),
            277: (SHORT, [self.channels]),
            278: (LONG, [self.strips[0][2]]),
            279: (LONG, [count for _, count, _ in self.strips]),
            284: (SHORT, [1]),
            317: (SHORT, [DIFFERENCES]),
        }
        if dpi is not None:
            tags |= {282 + axis: (RATIONAL, [round(value * 1000), 1000]) for axis, value in enumerate(dpi)}
            tags[296] = (SHORT, [INCH])
        if self.channels > colors:
            tags[338] = (SHORT, [UNASSOCIATED_ALPHA])
        if icc:
            tags[34675] = (UNDEFINED, icc)
        self._align()
        if exif:
            tags |= self._exif(exif)
        self._directory(tags)

    def _exif(self, exif: bytes) -> dict[int, tuple[int, list[int] | bytes]]:
        """Write the block's inner directories; the tags that belong into the outer one."""
        source = Image.Exif()
        source.load(exif)
        tags: dict[int, tuple[int, list[int] | bytes]] = {}
        for tag in PHOTOGRAPH_TAGS:
            if isinstance(value := source.get(tag), str):
                tags[tag] = (ASCII, value.encode("ascii", "replace") + b"\0")
        for name in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if values := source.get_ifd(name):
                inner = ImageFileDirectory_v2(b"II*\0\0\0\0\0", group=name)
                for key, entry in values.items():
                    inner[key] = entry
                tags[name] = (LONG, [self.position])
                self._append(inner.tobytes(self.position))
        return tags

    def _directory(self, tags: dict[int, tuple[int, list[int] | bytes]]) -> None:
        at = self.position
        beyond = at + 2 + 12 * len(tags) + 4
        entries, extra = [], bytearray()
        for tag, (kind, values) in sorted(tags.items()):
            data = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{PACKING[kind]}", *values)
            count = len(values) // 2 if kind == RATIONAL else len(values)
            if len(data) > 4:
                offset = beyond + len(extra)
                extra += data + b"\0" * (len(data) % 2)
                data = struct.pack("<I", offset)
            entries.append(struct.pack("<HHI4s", tag, kind, count, data))
        self._append(struct.pack("<H", len(tags)) + b"".join(entries) + b"\0\0\0\0" + bytes(extra))
        self.file.seek(4)
        self.file.write(struct.pack("<I", at))

    def _append(self, data: bytes) -> None:
        self.file.write(data)
        self.position += len(data)
        self._align()

    def _align(self) -> None:
        if self.position % 2:
            self.file.write(b"\0")
            self.position += 1


def photograph_exif(image: Image.Image) -> bytes:
    """An EXIF block of what a TIFF says of the photograph, or b""."""
    own, kept = image.getexif(), Image.Exif()
    for tag in PHOTOGRAPH_TAGS:
        if tag in own:
            kept[tag] = own[tag]
    for name in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if inner := own.get_ifd(name):
            kept[name] = dict(inner)
    return kept.tobytes() if len(kept) else b""
