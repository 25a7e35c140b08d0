"""A folder of everything that people's folders hold, each file with the outcome it must have."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

from espan_deploy.pipeline import png, tiff


@dataclass(frozen=True)
class Case:
    """A file and what becomes of it.

    name: as bytes, for not all are UTF-8. error: a pattern of its message, None where it is done.
    size, mode: of the result at four times, for done ones.
    """

    name: bytes
    error: str | None = None
    output: bytes | None = None
    size: tuple[int, int] = (0, 0)
    mode: str = "RGB"


def picture(width: int = 19, height: int = 13, channels: int = 3, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([(x * (c + 3) * 4 + y * 7 + rng.integers(0, 30, x.shape)) % 256 for c in range(channels)], axis=2)
    return np.squeeze(planes.astype(np.uint8), axis=2) if channels == 1 else planes.astype(np.uint8)


def encoded(image: Any, file_format: str = "PNG", **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, file_format, **arguments)
    return buffer.getvalue()


def deep(width: int, height: int, channels: int, file_format: str = "png") -> bytes:
    pixels = np.random.default_rng(channels).integers(1, 65536, (height, width, channels), dtype=np.uint16)
    pixels = pixels[..., 0] if channels == 1 else pixels
    if file_format == "png":
        stream = png.Stream()
        body = b"".join([*stream.chunk(png.deflated(pixels, 6)), *stream.end()])
        return png.head(width, height, channels, 16) + body + png.tail()
    buffer = io.BytesIO()
    writer = tiff.Writer(buffer, width, height, channels, 16)
    writer.write(tiff.compressed(pixels))
    writer.finish()
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    return block


def make(folder: Path) -> list[Case]:
    """Write the folder; its cases, one for every file that ends like an image."""
    folder.mkdir(parents=True, exist_ok=True)
    root = os.fsencode(folder)
    cases: list[Case] = []

    def add(name: str | bytes, data: bytes, error: str | None = None, **expected: Any) -> None:
        raw = name if isinstance(name, bytes) else name.encode()
        path = os.path.join(root, raw)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        if error is None:
            with Image.open(io.BytesIO(data)) as image:
                expected.setdefault("size", image.size)
        cases.append(Case(raw, error, **expected))

    _good(add)
    _bad(add)
    _special(folder, cases)
    return cases


def _good(add: Any) -> None:
    for suffix, file_format in (
        ("png", "PNG"), ("jpg", "JPEG"), ("JPG", "JPEG"), ("jpeg", "JPEG"), ("jfif", "JPEG"), ("webp", "WEBP"),
        ("tif", "TIFF"), ("tiff", "TIFF"), ("bmp", "BMP"), ("avif", "AVIF"), ("gif", "GIF"),
    ):  # fmt: skip
        output = b"plain-gif.png" if suffix == "gif" else None
        add(f"plain-{suffix}.{suffix}", encoded(picture(), file_format), output=output)
    for width, height in ((1, 1), (1, 40), (40, 1), (2, 3), (5, 5), (200, 7), (64, 64), (101, 97)):
        add(f"sizes/{width}x{height}.png", encoded(picture(width, height)), size=(width, height))
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"):
        file_format = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
        suffix = {"TIFF": "tif", "JPEG": "jpg", "PNG": "png"}[file_format]
        image = Image.fromarray(picture(channels=4)).convert("RGBA")
        if mode == "I;16":
            image = Image.fromarray(picture(channels=1).astype(np.uint16) * 257)
        elif mode in ("1", "L", "P", "CMYK", "YCbCr"):
            image = image.convert("RGB").convert(mode)
        else:
            image = image.convert(mode)
        result = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.get(mode, mode)
        add(f"modes/{mode.replace(';', '')}.{suffix}", encoded(image, file_format), mode=result)
    for orientation in range(1, 9):
        size = (13, 19) if orientation >= 5 else (19, 13)
        add(f"orientation/{orientation}.jpg", encoded(picture(), "JPEG", exif=exif(orientation)), size=size)
    for channels, mode in ((1, "I;16"), (2, "RGBA"), (3, "RGB"), (4, "RGBA")):
        add(f"deep/{channels}.png", deep(9, 7, channels), mode=mode)
    for channels, mode in ((1, "I;16"), (3, "RGB"), (4, "RGBA")):
        add(f"deep/{channels}.tif", deep(9, 7, channels, "tif"), mode=mode)
    palette = Image.fromarray(picture()).quantize(8)
    add("palette-transparent.png", encoded(palette, transparency=2), mode="RGBA")
    add("colour-key.png", encoded(picture(), transparency=(1, 2, 3)))
    add("grey-key.png", encoded(picture(channels=1), transparency=200), mode="L*")
    hidden = picture(channels=4)
    hidden[..., 3] = 0
    add("all-transparent.png", encoded(hidden), mode="RGBA")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    add("profile.jpg", encoded(picture(), "JPEG", icc_profile=profile, dpi=(300, 300)))
    add("broken-profile.png", encoded(picture(), icc_profile=b"\0garbage" * 9))
    add("broken-exif.jpg", encoded(picture(), "JPEG", exif=b"Exif\0\0garbage that is no TIFF"))
    add("progressive.jpg", encoded(picture(64, 64), "JPEG", progressive=True))
    add("interlaced.png", _interlaced())
    add("a name with spaces & 'quotes'.png", encoded(picture()))
    add("übergröße-写真-🙂.png", encoded(picture()))
    add(b"not-utf8-\xff\xfe.png", encoded(picture()))
    add("-dash.png", encoded(picture()))
    add("same.jpg", encoded(picture(), "JPEG"), output=b"same.jpg")
    add("same.png", encoded(picture()), output=b"same.png")
    add("folder named.png/inside.png", encoded(picture()))
    add("wrong-ending.jpg", encoded(picture()))
    add("n" * 200 + ".png", encoded(picture()))
    add("trailing-garbage.png", encoded(picture()) + b"more bytes" * 9)
    add("copy-1.png", encoded(picture()))
    add("copy-2.png", encoded(picture()))


def _interlaced() -> bytes:
    """A PNG of one pixel, marked as interlaced: its only pass is that pixel."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, png.RGB, 0, 0, 1)
    data = zlib.compress(b"\0" + bytes((9, 8, 7)))
    return png.SIGNATURE + b"".join(png.chunk(b"IHDR", header)) + b"".join(png.chunk(b"IDAT", data)) + png.tail()


def _bad(add: Any) -> None:
    large = picture(90, 80)
    for file_format, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp"), ("AVIF", "avif")):  # noqa: E501  # fmt: skip
        data = encoded(large, file_format)
        damaged = "truncated|damaged|not an image"
        add(f"bad/half.{suffix}", data[: len(data) // 2], damaged)
        add(f"bad/head.{suffix}", data[:12], damaged)
    for suffix in ("png", "jpg", "webp", "tif"):
        add(f"bad/empty.{suffix}", b"", "empty")
        add(f"bad/text.{suffix}", b"this is a text file\n" * 9, "not an image")
    add("bad/zeros.png", b"\0" * 999, "not an image")
    add("bad/bomb.png", png.head(50_000, 50_000, 3, 8) + b"".join(png.chunk(b"IDAT", b"\x78\x01")) + png.tail(), "bomb")
    add("bad/no-size.png", png.head(0, 0, 3, 8) + png.tail(), "damaged|not an image|empty|no pixels")
    add("bad/no-data.png", png.head(9, 9, 3, 8) + png.tail(), "damaged|truncated|not an image")
    crc = bytearray(encoded(large))
    crc[29] ^= 0xFF
    add("bad/checksum.png", bytes(crc), "damaged|not an image")
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    for file_format, suffix in (("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif"), ("AVIF", "avif")):
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        output = b"bad/animated.gif.png" if suffix == "gif" else None
        add(f"bad/animated.{suffix}", data, "3 frames", output=output)
    add("bad/float.tif", encoded(np.ones((4, 4), np.float32), "TIFF"), "no agreed white")
    add("bad/wide.webp", encoded(picture(4100, 2), "WEBP"), "webp holds")


def _special(folder: Path, cases: list[Case]) -> None:
    (folder / "loop.png").symlink_to("loop.png")
    cases.append(Case(b"loop.png", "symbolic links"))
    (folder / "dangling.png").symlink_to("nowhere.png")
    cases.append(Case(b"dangling.png", "No such file"))
    (folder / "circle").mkdir()
    (folder / "circle" / "again").symlink_to(folder)
    (folder / "linked.png").symlink_to("copy-1.png")
    cases.append(Case(b"linked.png", size=(19, 13)))
    os.mkfifo(folder / "pipe.png")
    cases.append(Case(b"pipe.png", "not a regular file"))
    (folder / "notes.txt").write_text("left alone")
    (folder / "Thumbs.db").write_bytes(b"left alone")
