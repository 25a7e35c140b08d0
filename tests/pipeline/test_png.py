from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from espan_deploy.pipeline import png

KINDS = ("noise", "flat", "gradient", "few colours")


def pixels(kind: str, height: int, width: int, channels: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    shape = (height, width, channels)
    if kind == "noise":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == "flat":
        return np.full(shape, rng.integers(0, 256), np.uint8)
    if kind == "gradient":
        return (np.cumsum(rng.integers(-2, 3, shape), axis=1) % 256).astype(np.uint8)
    return (rng.integers(0, 3, shape) * 127).astype(np.uint8)


def assembled(image: NDArray[Any], rows: int, **head: Any) -> bytes:
    height, width = image.shape[:2]
    channels = 1 if image.ndim == 2 else image.shape[2]
    stream, parts = png.Stream(), [png.head(width, height, channels, image.dtype.itemsize * 8, **head)]
    for top in range(0, height, rows):
        strip = image[top : top + rows]
        piece = png.deflated(strip, 1)
        parts.append(b"".join(stream.chunk(piece)))
    return b"".join([*parts, *stream.end(), png.tail()])


def chunks(file: bytes) -> dict[bytes, bytes]:
    position, found = 8, {}
    while position < len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        data = file[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", file, position + 8 + length)[0] == zlib.crc32(kind + data)
        found[kind] = found.get(kind, b"") + data
        position += 12 + length
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [3, 4])
def test_spliced_strips_are_the_image(kind: str, channels: int) -> None:
    rng = np.random.default_rng(11)
    for _ in range(40):
        height, width = int(rng.integers(1, 70)), int(rng.integers(1, 90))
        image = pixels(kind, height, width, channels, rng)
        file = assembled(image, int(rng.integers(1, height + 1)))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), image)
        # Pillow does not mind a wrong checksum or a missing end; a strict reader does.
        raw = zlib.decompress(chunks(file)[b"IDAT"])
        assert len(raw) == height * (width * channels + 1)


def test_without_isa_l_zlib_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    image = pixels("gradient", 23, 17, 3, np.random.default_rng(3))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(assembled(image, 9)))), image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_strips_of_any_kind(channels: int, dtype: Any) -> None:
    rng = np.random.default_rng(12)
    image = rng.integers(0, np.iinfo(dtype).max + 1, (23, 17, channels), dtype=dtype)
    image = image[..., 0] if channels == 1 else image
    file = assembled(image, 7)
    raw = np.frombuffer(zlib.decompress(chunks(file)[b"IDAT"]), np.uint8).reshape(23, -1)
    rows = raw[:, 1:].copy()
    for y in range(23):
        if raw[y, 0] == png.UP_FILTER:
            rows[y] += rows[y - 1]
    expected = image.astype(image.dtype.newbyteorder(">")).tobytes()
    assert rows.tobytes() == expected
    if dtype == np.uint8:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), image)


def test_profile_resolution_and_exif_survive() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    file = assembled(image, 4, icc=b"profile" * 50, exif=exif.tobytes()[6:], dpi=(300.0, 150.0))
    with Image.open(io.BytesIO(file)) as opened:
        assert opened.info["icc_profile"] == b"profile" * 50
        assert opened.getexif()[0x010F] == "Maker"
        assert opened.info["dpi"] == pytest.approx((300, 150), abs=0.02)
    order = list(chunks(file))
    assert order.index(b"iCCP") < order.index(b"IDAT")
