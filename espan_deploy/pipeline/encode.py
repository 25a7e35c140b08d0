"""Upscaled bands into files: PNG, JPEG and TIFF strip by strip, the others through Pillow once all bands are there."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from espan_deploy.errors import InputError
from espan_deploy.pipeline import exif as exif_block
from espan_deploy.pipeline import jpeg, png, tiff
from espan_deploy.pipeline.picture import Picture, Pixels, to_file_pixels, to_levels
from espan_deploy.pipeline.plugins import enable

PngCompression = Literal["fast", "small"]


@dataclass(frozen=True)
class Format:
    """A format that can be written.

    max_side: in pixels. deep: whether it holds 16 bits per channel. alpha: whether it holds transparency.
    """

    name: str
    extension: str
    max_side: int
    deep: bool = False
    alpha: bool = True
    default_quality: int = 0


FORMATS = {
    entry.name: entry
    for entry in (
        Format("png", ".png", png.MAX_SIDE, deep=True),
        Format("jpeg", ".jpg", jpeg.MAX_SIDE, alpha=False, default_quality=95),
        Format("webp", ".webp", 16_383, default_quality=95),
        Format("avif", ".avif", 65_535, default_quality=85),
        Format("jxl", ".jxl", 2**18 - 1),
        Format("tiff", ".tif", 2**31 - 1, deep=True),
        Format("bmp", ".bmp", 2**31 - 1, alpha=False),
    )
}

MAX_TIFF_BYTES = 2**32 - 2**20
"""Classic TIFF counts bytes in 32 bits."""

TIFF_STRIP_BYTES = 1 << 20

JXL_EFFORT = 3
"""Of libjxl's 1 to 9, for lossless pixels. Lossy ones are not offered: the plugin codes them badly (measured: 29.6 dB
in 64 KB, where libjxl's own tool has 37 dB in 25 KB)."""

ZLIB_LEVELS: dict[PngCompression, int] = {"fast": 1, "small": 9}


@dataclass(frozen=True)
class EncodeSettings:
    """quality: 1 to 100, or None for the format's default."""

    quality: int | None = None
    png_compression: PngCompression = "fast"


def check_holds(file_format: Format, height: int, width: int, channels: int, deep: bool) -> None:
    """Raise InputError where a format cannot hold an image of this size, in its own pixels."""
    if max(height, width) > file_format.max_side:
        raise InputError(
            f"the result would be {width}x{height}, and {file_format.name} holds {file_format.max_side:,} a side",
            hint="use --format png",
        )
    size = height * width * channels * (2 if deep else 1)
    if file_format.name in ("tiff", "bmp") and size > MAX_TIFF_BYTES:
        raise InputError(
            f"the result would be {size:,} bytes, and {file_format.name} holds 4 GiB", hint="use --format png"
        )


def is_streamed(file_format: Format, settings: EncodeSettings) -> bool:
    """Whether bands are written as they come, whatever their depth; else the whole image is held until the last."""
    if file_format.name == "jpeg":
        return jpeg.can_be_spliced()
    return file_format.name == "tiff" or (file_format.name == "png" and settings.png_compression == "fast")


class FileSink(ABC):
    """A :class:`~espan_deploy.pipeline.jobs.Sink` that writes an image file."""

    deep = False
    """Whether the file's pixels are uint16."""

    def __init__(self, file: BinaryIO, picture: Picture, height: int, width: int, scale: int) -> None:
        self.file, self.picture = file, picture
        self.height, self.width = height, width
        self.exif = exif_block.resized(picture.exif, width, height, scale)
        self.dpi = None if picture.dpi is None else (picture.dpi[0] * scale, picture.dpi[1] * scale)

    def _require_readable_exif(self) -> None:
        """Leave out what the format would have to take apart and cannot."""
        if self.exif and not exif_block.is_readable(self.exif):
            self.exif = b""
            self.picture.notes.append("its EXIF is damaged and was left out")

    def prepare(self, color: Pixels, alpha: Pixels | None) -> Iterable[Any]:
        """One band in parts, in the file's own channels and depth."""
        if color.dtype != np.uint8 and not self.deep:
            color = to_levels(color, np.uint8)
            alpha = None if alpha is None else to_levels(alpha, np.uint8)
        return self.parts(to_file_pixels(color, alpha, self.picture))

    def parts(self, pixels: Pixels) -> Iterable[Any]:
        """One band, (h, width) or (h, width, C), uint8 or uint16, in parts that are made as they are asked for.

        The band as it is, unless a format can do better.
        """
        return [pixels]

    @abstractmethod
    def commit(self, part: Any) -> None:
        """Take the next part."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is left."""

    def pillow_head(self, format_name: str) -> dict[str, Any]:
        """Pillow's arguments for what a file of this format holds besides its pixels."""
        head: dict[str, Any] = {}
        if self.dpi is not None and format_name in ("png", "jpeg", "bmp"):
            head["dpi"] = self.dpi
        if format_name == "bmp":
            return head
        if self.picture.icc:
            head["icc_profile"] = self.picture.icc
        exif = exif_block.with_prefix(self.exif)
        if format_name == "jpeg" and len(exif) > jpeg.MAX_EXIF:
            self.picture.notes.append("EXIF is too large for JPEG and was left out")
        elif self.exif:
            head["exif"] = exif
        return head

    def sha256(self) -> str | None:
        """Of the finished file, where it was written front to back and so is known without reading it again."""
        return None


def open_sink(
    file: BinaryIO, file_format: Format, settings: EncodeSettings, picture: Picture, scale: int, *, deep: bool
) -> FileSink:
    """The sink for a format; deep: whether the bands are uint16."""
    height, width = picture.height * scale, picture.width * scale
    if picture.alpha is not None and not file_format.alpha:
        picture.notes.append(f"{file_format.name} holds no transparency: shown on white")
    if file_format.name == "png" and (deep or is_streamed(file_format, settings)):
        level = ZLIB_LEVELS[settings.png_compression]
        return PngSink(file, picture, height, width, scale, deep=deep, level=level)
    if file_format.name == "jpeg" and is_streamed(file_format, settings):
        return JpegSink(file, picture, height, width, scale, quality=settings.quality or file_format.default_quality)
    if file_format.name == "tiff":
        return TiffSink(file, picture, height, width, scale, deep=deep)
    return PillowSink(file, picture, height, width, scale, file_format=file_format, settings=settings)


class StreamSink(FileSink):
    """A file written front to back."""

    def __init__(self, file: BinaryIO, picture: Picture, height: int, width: int, scale: int) -> None:
        super().__init__(file, picture, height, width, scale)
        self.digest = hashlib.sha256()

    def sha256(self) -> str:
        """Of what was written."""
        return self.digest.hexdigest()

    def _write(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            self.digest.update(part)
        self.file.writelines(parts)


class Strips:
    """Cuts bands, however high, into strips of so many rows; the last of the image may be lower."""

    def __init__(self, rows: int, height: int) -> None:
        self.rows, self.missing = rows, height
        self.rest: Pixels | None = None

    def cut(self, band: Pixels) -> Iterator[Pixels]:
        """The strips that the rows so far fill."""
        self.missing -= len(band)
        if self.rest is not None and len(self.rest):
            gap = self.rows - len(self.rest)
            strip, band = np.concatenate([self.rest, band[:gap]]), band[gap:]
            if len(strip) < self.rows and self.missing:
                self.rest = strip
                return
            yield strip
        end = len(band) - (len(band) % self.rows if self.missing else 0)
        for top in range(0, end, self.rows):
            yield band[top : min(top + self.rows, end)]
        self.rest = band[end:].copy()  # the band's memory is used again


class PngSink(StreamSink):
    """PNG as a stream of strips."""

    def __init__(
        self, file: BinaryIO, picture: Picture, height: int, width: int, scale: int, *, deep: bool, level: int
    ) -> None:
        super().__init__(file, picture, height, width, scale)
        self.level, self.deep = level, deep
        self.stream = png.Stream()
        self._write(
            png.head(
                width,
                height,
                picture.channels,
                16 if deep else 8,
                icc=picture.icc,
                exif=exif_block.without_prefix(self.exif),
                dpi=self.dpi,
            )
        )

    def parts(self, pixels: Pixels) -> Iterator[png.Piece]:
        """The band's strips, compressed."""
        return (png.deflated(strip, self.level) for strip in png.strips(pixels))

    def commit(self, part: png.Piece) -> None:
        """Write a strip."""
        self._write(*self.stream.chunk(part))

    def finish(self) -> None:
        """Write the ends of the compressed stream and of the file."""
        self._write(*self.stream.end(), png.tail())


class JpegSink(StreamSink):
    """Baseline JPEG as a stream of strips."""

    def __init__(self, file: BinaryIO, picture: Picture, height: int, width: int, scale: int, *, quality: int) -> None:
        super().__init__(file, picture, height, width, scale)
        self.quality = quality
        self.strips = Strips(jpeg.strip_rows(width, picture.channels), height)
        self.written = 0

    def commit(self, part: Pixels) -> None:
        """Compress and write the strips that are full."""
        for strip in self.strips.cut(part):
            pixels = strip if self.picture.alpha is None else np.asarray(_on_white(Image.fromarray(strip)))
            head, scan = jpeg.taken_apart(jpeg.compressor()(pixels, self.quality))
            self._write(jpeg.restart_marker(self.written) if self.written else self._head(head), scan)
            self.written += 1

    def _head(self, strip: bytes) -> bytes:
        rows = self.strips.rows
        blocks = -(-self.width // jpeg.BLOCK) * (rows // jpeg.BLOCK) if rows < self.height else 0
        return jpeg.head_of_strips(strip, self.height, blocks, **self.pillow_head("jpeg"))

    def finish(self) -> None:
        """Write the end marker."""
        self._write(jpeg.END)


class TiffSink(FileSink):
    """TIFF as a stream of strips."""

    def __init__(self, file: BinaryIO, picture: Picture, height: int, width: int, scale: int, *, deep: bool) -> None:
        super().__init__(file, picture, height, width, scale)
        self.deep = deep
        self._require_readable_exif()
        self.writer = tiff.Writer(file, width, height, picture.channels, 16 if deep else 8)
        row_bytes = width * picture.channels * (2 if deep else 1)
        self.strips = Strips(max(1, TIFF_STRIP_BYTES // row_bytes), height)

    def commit(self, part: Pixels) -> None:
        """Compress and write the strips that are full."""
        for strip in self.strips.cut(part):
            self.writer.write(tiff.compressed(strip))

    def finish(self) -> None:
        """Write the directory."""
        self.writer.finish(icc=self.picture.icc, exif=self.exif, dpi=self.dpi)


class PillowSink(FileSink):
    """Any format of Pillow's; the whole image is held."""

    def __init__(
        self,
        file: BinaryIO,
        picture: Picture,
        height: int,
        width: int,
        scale: int,
        *,
        file_format: Format,
        settings: EncodeSettings,
    ) -> None:
        super().__init__(file, picture, height, width, scale)
        self.format, self.settings = file_format, settings
        self.canvas: Image.Image | None = None
        self.top = 0
        if file_format.name == "avif":
            self._require_readable_exif()

    def parts(self, pixels: Pixels) -> Iterable[Pixels]:
        """The band in slices, for Pillow takes a third more memory for it; an image that is whole as it is."""
        return [pixels] if len(pixels) == self.height else png.strips(pixels)

    def commit(self, part: Pixels) -> None:
        """Paste the rows."""
        image = self._image(part)
        if image.height == self.height:
            self.canvas = image
            return
        if self.canvas is None:
            self.canvas = Image.new(image.mode, (self.width, self.height))
        self.canvas.paste(image, (0, self.top))
        self.top += image.height

    def _image(self, pixels: Pixels) -> Image.Image:
        band = Image.fromarray(pixels)
        if self.picture.alpha is not None and not self.format.alpha:
            band = _on_white(band)
        if self.format.name in ("webp", "avif", "jxl") and band.mode == "LA":
            band = band.convert("RGBA")
        return band

    def finish(self) -> None:
        """Encode and write."""
        assert self.canvas is not None
        if self.format.name == "jxl":
            enable("JXL")
        self.canvas.save(self.file, self.format.name.upper(), **self._arguments())
        self.canvas = None

    def _arguments(self) -> dict[str, Any]:
        arguments = self.pillow_head(self.format.name)
        if self.format.default_quality:
            arguments["quality"] = self.settings.quality or self.format.default_quality
        if self.format.name == "jpeg":
            arguments["subsampling"] = jpeg.FULL_CHROMA
        elif self.format.name == "jxl":
            arguments |= {"lossless": True, "effort": JXL_EFFORT}
        elif self.format.name == "png":
            arguments["compress_level"] = ZLIB_LEVELS[self.settings.png_compression]
        return arguments


def _on_white(band: Image.Image) -> Image.Image:
    solid = "L" if band.mode == "LA" else "RGB"
    white = Image.new(band.mode, band.size, (255,) * len(band.getbands()))
    return Image.alpha_composite(white.convert("RGBA"), band.convert("RGBA")).convert(solid)
