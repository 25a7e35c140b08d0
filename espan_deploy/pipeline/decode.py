"""Image files into pictures. Every way a file can be bad ends in an InputError that says which."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from espan_deploy.errors import InputError
from espan_deploy.pipeline.exif import reset_orientation
from espan_deploy.pipeline.origin import Origin, origin_of
from espan_deploy.pipeline.picture import Picture, Pixels, fill_transparent
from espan_deploy.pipeline.plugins import HEIC_EXTENSIONS, JXL_EXTENSIONS, deep_heif, enable, plugin_format
from espan_deploy.pipeline.tiff import photograph_exif

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "GIF")
"""What Pillow itself may try. A JPEG with further pictures behind it comes as "MPO"."""

SEVERAL_PICTURES = ("MPO", "HEIF")
"""Formats whose files may hold further pictures beside the photograph, which is their first or primary one."""

EXTENSIONS = frozenset(
    (
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".avif",
        ".gif",
        *HEIC_EXTENSIONS,
        *JXL_EXTENSIONS,
    )
)

MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs: twice a quarter of a gigabyte of RGB."""

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ORIENTATION_TAG = 0x0112

DEEP_RAW_MODES = {
    "RGB;16B": ("RGB", "RGB;16L"),
    "RGB;16L": ("RGB", "RGB;16B"),
    "RGB;16N": ("RGB", "RGB;16B"),
    "RGBA;16B": ("RGBA", "RGBA;16L"),
    "RGBA;16L": ("RGBA", "RGBA;16B"),
    "RGBA;16N": ("RGBA", "RGBA;16B"),
}
"""Raw mode of 16-bit colour -> Pillow's mode and the raw mode of the other byte order.

Pillow keeps the high byte of 16-bit colour only. Read once in either byte order, the two high bytes are all 16 bits.
"""


PNG_EXIF_MARKS = (b"eXIf", b"Raw profile type", b"com.adobe.xmp")
"""What EXIF or XMP in a PNG file begins with: a chunk's type, or a text chunk's keyword."""


def decode(data: bytes) -> Picture:
    """The picture in a file's bytes. Raises InputError where there is none, or one that is not handled."""
    with _translated(), _open(data) as image:
        _check(image)
        return _convert(image, data)


def picture_from_image(image: Image.Image) -> Picture:
    """The picture in an image that Pillow has opened or made; 16 bits of grey are kept, of colour Pillow has 8.

    Raises InputError as :func:`decode`.
    """
    with _translated():
        _check(image)
        return _convert(image, b"")


def read_size(data: bytes) -> tuple[int, int, str]:
    """Height and width as displayed, and the format, from the header alone. Raises InputError as :func:`decode`."""
    with _translated(), _open(data) as image:
        _check(image)
        width, height = image.size
        if _orientation(image, data) >= 5:
            width, height = height, width
        return height, width, image.format or ""


def read_origin(data: bytes) -> Origin:
    """How the file's pixels were kept, from its header alone. Raises InputError as :func:`decode`."""
    with _translated(), _open(data) as image:
        return origin_of(image, data)


def _open(data: bytes) -> Image.Image:
    if not data:
        raise InputError("the file is empty")
    by_plugin = plugin_format(data)
    if by_plugin is None:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    enable(by_plugin)
    return Image.open(io.BytesIO(data), formats=(by_plugin,))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as exc:
        raise InputError("not an image of a known format, or its header is damaged") from exc
    except Image.DecompressionBombError as exc:
        raise InputError(f"too many pixels (over {MAX_PIXELS:,}): a decompression bomb?") from exc
    except MemoryError as exc:
        raise InputError("not enough memory to decode it") from exc
    except InputError:
        raise
    except Exception as exc:  # damaged files make Pillow's plugins raise nearly anything
        raise InputError(f"damaged or truncated: {str(exc) or type(exc).__name__}") from exc


def _check(image: Image.Image) -> None:
    _check_size(*image.size)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in SEVERAL_PICTURES:
        raise InputError(
            f"{frames} frames or pages: animations and documents are not upscaled, one frame of them would be a loss",
            hint="split it into single images first",
        )


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{width}x{height} has over {MAX_PIXELS:,} pixels: a decompression bomb?")


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "JXL":
        return 1  # its codestream has its own, which counts and is applied
    if data and image.format == "PNG" and not any(mark in data for mark in PNG_EXIF_MARKS):
        return 1  # asked for EXIF that is not there, Pillow would decode all pixels to look behind them
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block must not cost the picture
        return 1
    return value if isinstance(value, int) and value in TRANSPOSES else 1


def _convert(image: Image.Image, data: bytes) -> Picture:
    notes: list[str] = []
    if image.format == "JXL":
        image.load()  # profile and EXIF come with the pixels
    raw_mode = _raw_mode(image) if data else ""  # gone once the pixels are read, as looking for EXIF may do
    icc = bytes(image.info.get("icc_profile") or b"")
    orientation = _orientation(image, data)
    exif = reset_orientation(_raw_exif(image))
    dpi = _dpi(image)
    image_format = "JPEG" if image.format == "MPO" else image.format or "PNG"
    if image.format == "JXL" and (bits := image.info["bits_per_sample"]) > 8:
        notes.append(f"{bits} bits per channel were read as 8: the JPEG XL plugin gives no more")
    color, alpha, depth, icc = _pixels(image, data, raw_mode, orientation=orientation, icc=icc, notes=notes)
    if alpha is not None and image.mode in ("P", "RGB", "L") and alpha.min() == (255 if depth == 8 else 1.0):
        alpha = None  # a colour key that no pixel has
    if alpha is not None:
        color = fill_transparent(color, alpha)
    return Picture(color, alpha, depth, image_format, icc=icc, exif=exif, dpi=dpi, notes=notes)


def _raw_exif(image: Image.Image) -> bytes:
    raw = image.info.get("exif") or b""
    if not raw and image.format == "TIFF":
        return photograph_exif(image)
    return bytes(raw)


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


def _pixels(
    image: Image.Image, data: bytes, raw_mode: str, *, orientation: int, icc: bytes, notes: list[str]
) -> tuple[Pixels, Pixels | None, int, bytes]:
    """Colour, alpha, depth and the profile that holds for them."""
    deep = _deep_heif(data) if image.format == "HEIF" else _deep(image, data, raw_mode)
    if deep is not None:
        color, alpha = deep
        turn = _turner(orientation)
        return turn(color), None if alpha is None else turn(alpha), 16, icc
    if image.mode in ("I", "F"):
        raise InputError(
            f"{image.mode} pixels of 32 bits have no agreed white", hint="convert it to 8 or 16 bits per channel"
        )
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image, icc = _to_rgb(image, icc, notes)
    if image.mode == "P" or "transparency" in image.info:
        image.load()
        transparent = "transparency" in image.info or image.mode == "PA"
        target = "RGBA" if transparent else "RGB"
        if image.mode in ("1", "L") and transparent:
            target = "LA"
        image = image.convert(target)
    modes = {"1": "L", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}
    mode = modes.get(image.mode, image.mode)
    if mode not in ("L", "LA", "RGB", "RGBA"):
        raise InputError(f"pixels of kind {image.mode} are not handled", hint="convert it to RGB")
    if mode != image.mode:
        image = image.convert(mode)
    if orientation in TRANSPOSES:
        image = image.transpose(TRANSPOSES[orientation])
    array = _whole_jpeg(image, data) if image.format == "JPEG" else None
    if array is None:
        array = np.asarray(image)
    if mode == "LA":
        return np.ascontiguousarray(array[..., 0]), np.ascontiguousarray(array[..., 1]), 8, icc
    if mode == "RGBA":
        return np.ascontiguousarray(array[..., :3]), np.ascontiguousarray(array[..., 3]), 8, icc
    return array, None, 8, icc


END_OF_JPEG = b"\xff\xd9"


def _whole_jpeg(image: Image.Image, data: bytes) -> Pixels | None:
    """Pixels of a JPEG file, Pillow's to the byte, where they can be had sooner; None elsewhere.

    imagecodecs has the same library and writes into the array, without the interpreter's lock, which Pillow holds for
    two copies. But it takes what is cut off for grey: a file must end as one does.
    """
    if image.mode not in ("L", "RGB") or not data.endswith(END_OF_JPEG):
        return None
    try:
        from imagecodecs import jpeg8_decode
    except ImportError:
        return None
    try:
        pixels = np.asarray(jpeg8_decode(data))
    except Exception:  # Pillow may read it, or say why not
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) and pixels.dtype == np.uint8 else None


def _to_rgb(image: Image.Image, icc: bytes, notes: list[str]) -> tuple[Image.Image, bytes]:
    """Through the file's own profile into sRGB where it has one; the profile then no longer holds."""
    if icc and image.mode in ("CMYK", "LAB"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            assert converted is not None
            notes.append(f"{image.mode} converted to sRGB through its profile")
            return converted, b""
        except (ImageCms.PyCMSError, OSError):
            notes.append("its colour profile is damaged and was ignored")
    notes.append(f"{image.mode} converted to RGB without a profile")
    return image.convert("RGB"), b""


def _deep(image: Image.Image, data: bytes, raw_mode: str) -> tuple[Pixels, Pixels | None] | None:
    """Colour and alpha in float32 [0, 1] of an image with 16 bits per channel, None of one with fewer."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32) / np.float32(65535), None
    if image.format == "PNG" and raw_mode == "LA;16B":
        # Two 16-bit channels have the layout of four of 8 bits.
        quads = _reread(data, "RGBA", "RGBA").astype(np.float32)
        pairs = (quads[..., ::2] * 256 + quads[..., 1::2]) / np.float32(65535)
        return np.ascontiguousarray(pairs[..., 0]), np.ascontiguousarray(pairs[..., 1])
    if raw_mode not in DEEP_RAW_MODES:
        return None
    mode, other = DEEP_RAW_MODES[raw_mode]
    high, low = np.asarray(image).astype(np.float32), _reread(data, mode, other)
    values = (high * 256 + low) / np.float32(65535)
    if mode == "RGBA":
        return np.ascontiguousarray(values[..., :3]), np.ascontiguousarray(values[..., 3])
    return values, None


def _deep_heif(data: bytes) -> tuple[Pixels, Pixels | None] | None:
    values = deep_heif(data)
    if values is None:
        return None
    planes = np.atleast_3d(values).astype(np.float32) / np.float32(65535)
    if planes.shape[2] < 3:
        color, alpha = planes[..., 0], planes[..., 1:]
    else:
        color, alpha = planes[..., :3], planes[..., 3:]
    return np.ascontiguousarray(color), np.ascontiguousarray(alpha[..., 0]) if alpha.shape[2] else None


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", ())
    if not tiles:
        return ""
    arguments = tiles[0].args
    if isinstance(arguments, tuple):
        return next((value for value in arguments if isinstance(value, str)), "")
    return arguments or ""


def _reread(data: bytes, mode: str, raw_mode: str) -> Pixels:
    """Decode again with another raw mode."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        old = _raw_mode(image)
        assert isinstance(image, ImageFile)
        image._mode = mode
        image.tile = [tile._replace(args=_with_raw_mode(tile.args, old, raw_mode)) for tile in image.tile]
        image.info.pop("transparency", None)
        return np.asarray(image)


def _with_raw_mode(arguments: Any, old: str, new: str) -> Any:
    if isinstance(arguments, tuple):
        return tuple(new if value == old else value for value in arguments)
    return new


def _turner(orientation: int) -> Any:
    """EXIF orientation on an array; for 16 bits, which Pillow's transpose does not take in colour."""
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }
    return lambda array: np.ascontiguousarray(turns[orientation](array))
