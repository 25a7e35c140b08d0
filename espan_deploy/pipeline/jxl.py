"""Whether a JPEG XL file is lossy: its head says so, its Pillow plugin does not (ISO/IEC 18181-1, A.3 to A.6)."""

from __future__ import annotations

import struct

CODESTREAM = b"\xff\x0a"
SIZE_BITS = (9, 13, 18, 30)
RECONSTRUCTION = b"jbrd"
"""The box that brings a JPEG file back; it stands before the codestream."""
BOXES_REACH = 4096


def coded_lossily(data: bytes) -> bool:
    """Whether a file's pixels are coded in XYB, as lossy ones are, or are those of a JPEG file that it brings back.

    Raises ValueError where the bytes hold no head of a bare codestream or a container.
    """
    stream = _codestream(data)
    if stream[:2] != CODESTREAM:
        raise ValueError("no JPEG XL codestream")
    if RECONSTRUCTION in data[:BOXES_REACH] and data[:2] != CODESTREAM:
        return True
    bits = _Bits(stream[2:])
    _size(bits)
    if bits.take(1):  # everything at its default, XYB too
        return True
    if bits.take(1):
        bits.take(3)  # orientation
        if bits.take(1):
            _size(bits)  # of display
        if bits.take(1) or bits.take(1):
            raise ValueError("a JPEG XL file with a preview or an animation")
    _bit_depth(bits)
    bits.take(1)  # buffers of 16 bits suffice
    for _ in range(bits.choose((0, 0), (0, 1), (4, 2), (12, 1))):
        if not bits.take(1):  # no plain alpha: what follows depends on its kind
            return True
    return bool(bits.take(1))


def _codestream(data: bytes) -> bytes:
    """The first part of the codestream: of a container, the first box that holds any."""
    if data[:2] == CODESTREAM:
        return data
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = at + size if size else len(data)
        if kind == b"jxlc":
            return data[start:end]
        if kind == b"jxlp" and end - start > 4 + len(CODESTREAM):
            return data[start + 4 : end]
        at = max(end, start)
    raise ValueError("no codestream in this JPEG XL container")


class _Bits:
    """The codestream's bits, lowest first."""

    def __init__(self, data: bytes) -> None:
        self.value = int.from_bytes(data[:64], "little")
        self.left = 8 * min(64, len(data))

    def take(self, count: int) -> int:
        if count > self.left:
            raise ValueError("a truncated JPEG XL header")
        result = self.value & ((1 << count) - 1)
        self.value >>= count
        self.left -= count
        return result

    def choose(self, *ranges: tuple[int, int]) -> int:
        """U32: two bits choose a range, (bits, offset)."""
        count, offset = ranges[self.take(2)]
        return offset + self.take(count)


def _size(bits: _Bits) -> None:
    """Read past a height and a width, which may be a ratio."""
    small = bits.take(1)

    def side() -> None:
        if small:
            bits.take(5)
        else:
            bits.choose(*((count, 1) for count in SIZE_BITS))

    side()
    if not bits.take(3):
        side()


def _bit_depth(bits: _Bits) -> None:
    if bits.take(1):  # floating point
        bits.choose((0, 32), (0, 16), (0, 24), (6, 1))
        bits.take(4)
    else:
        bits.choose((0, 8), (0, 10), (0, 12), (6, 1))
