"""16-bit TIFF, strip by strip: little-endian, deflate with horizontal differences, as every reader knows it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from espan_deploy.pipeline.picture import Pixels

SHORT, LONG, RATIONAL, UNDEFINED = 3, 4, 5, 7
SIZES = {SHORT: "H", LONG: "I", UNDEFINED: "B"}
DEFLATE, DIFFERENCES = 8, 2
MIN_IS_BLACK, RGB = 1, 2
UNASSOCIATED_ALPHA = 2
INCH = 2


@dataclass(frozen=True)
class Strip:
    """Compressed rows."""

    data: bytes
    rows: int


def compressed(pixels: Pixels) -> Strip:
    """(h, w) or (h, w, C) uint16 rows as one strip."""
    samples = pixels if pixels.ndim == 3 else pixels[..., None]
    differences = samples.astype("<u2")
    differences[:, 1:] = samples[:, 1:] - samples[:, :-1]
    return Strip(zlib.compress(differences.tobytes(), 6), len(pixels))


class Writer:
    """Writes the strips as they come and the directory behind them. All but the last must have equally many rows."""

    def __init__(
        self,
        file: BinaryIO,
        width: int,
        height: int,
        channels: int,
        *,
        icc: bytes = b"",
        dpi: tuple[float, float] | None = None,
    ) -> None:
        self.file, self.width, self.height, self.channels = file, width, height, channels
        self.icc, self.dpi = icc, dpi
        self.offsets: list[int] = []
        self.counts: list[int] = []
        self.rows: list[int] = []
        file.write(b"II*\0\0\0\0\0")
        self.position = 8

    def write(self, strip: Strip) -> None:
        """Append a strip."""
        self.file.write(strip.data)
        self.offsets.append(self.position)
        self.counts.append(len(strip.data))
        self.rows.append(strip.rows)
        self.position += len(strip.data)

    def finish(self) -> None:
        """Write the directory and point the header at it."""
        colors = 1 if self.channels < 3 else 3
        tags: list[tuple[int, int, list[int]]] = [
            (256, LONG, [self.width]),
            (257, LONG, [self.height]),
            (258, SHORT, [16] * self.channels),
            (259, SHORT, [DEFLATE]),
            (262, SHORT, [RGB if colors == 3 else MIN_IS_BLACK]),
            (273, LONG, self.offsets),
            (277, SHORT, [self.channels]),
            (278, LONG, [self.rows[0]]),
            (279, LONG, self.counts),
            (284, SHORT, [1]),
            (317, SHORT, [DIFFERENCES]),
        ]
        if self.dpi is not None:
            tags += [(282 + i, RATIONAL, [round(value * 1000), 1000]) for i, value in enumerate(self.dpi)]
            tags.append((296, SHORT, [INCH]))
        if self.channels > colors:
            tags.append((338, SHORT, [UNASSOCIATED_ALPHA]))
        if self.icc:
            tags.append((34675, UNDEFINED, list(self.icc)))
        self._directory(sorted(tags))

    def _directory(self, tags: list[tuple[int, int, list[int]]]) -> None:
        if self.position % 2:
            self.file.write(b"\0")
            self.position += 1
        at = self.position
        beyond = at + 2 + 12 * len(tags) + 4
        entries, extra = [], bytearray()
        for tag, kind, values in tags:
            data = struct.pack(f"<{len(values)}{SIZES.get(kind, 'I')}", *values)
            count = len(values) // 2 if kind == RATIONAL else len(values)
            if len(data) > 4:
                offset = beyond + len(extra)
                extra += data + b"\0" * (len(data) % 2)
                data = struct.pack("<I", offset)
            entries.append(struct.pack("<HHI4s", tag, kind, count, data))
        self.file.write(struct.pack("<H", len(tags)) + b"".join(entries) + b"\0\0\0\0" + bytes(extra))
        self.file.seek(4)
        self.file.write(struct.pack("<I", at))
