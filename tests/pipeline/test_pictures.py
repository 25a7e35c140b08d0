"""Decoding every kind of file, and writing it again with what must survive."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile

from espan_deploy.errors import InputError
from espan_deploy.pipeline import png, tiff
from espan_deploy.pipeline.decode import decode, read_size
from espan_deploy.pipeline.encode import FORMATS, EncodeSettings, check_holds, open_sink
from espan_deploy.pipeline.picture import Picture, fill_transparent, to_file_pixels

LOSSY_LEVELS = 12
"""JPEG, WebP and AVIF at quality 95 on a gradient."""

SCALE = 4


def gradient(height: int = 12, width: int = 20, channels: int = 3) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 9, y * 15 + 1, (x + y) * 6, 255 - x * 5]
    return np.ascontiguousarray(np.stack(planes[:channels], axis=2).astype(np.uint8))


def saved(image: Image.Image, file_format: str = "PNG", **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **arguments)
    return buffer.getvalue()


def deep_png(image: NDArray[np.uint16]) -> bytes:
    height, width = image.shape[:2]
    channels = 1 if image.ndim == 2 else image.shape[2]
    stream = png.Stream()
    return (
        png.head(width, height, channels, 16)
        + b"".join([*stream.chunk(png.deflated(image, 6)), *stream.end()])
        + png.tail()
    )


def deep_tiff(image: NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    height, width = image.shape[:2]
    writer = tiff.Writer(buffer, width, height, 1 if image.ndim == 2 else image.shape[2], 16)
    writer.write(tiff.compressed(image))
    writer.finish()
    return buffer.getvalue()


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def written(picture: Picture, format_name: str, **settings: Any) -> bytes:
    """The picture enlarged by repeating pixels, through a sink in two bands."""
    buffer = io.BytesIO()
    deep = picture.depth == 16 and FORMATS[format_name].deep
    sink = open_sink(buffer, FORMATS[format_name], EncodeSettings(**settings), picture, SCALE, deep=deep)

    def large(plane: Any) -> Any:
        return None if plane is None else plane.repeat(SCALE, axis=0).repeat(SCALE, axis=1)

    color = picture.color if not picture.grey else np.dstack([picture.color] * 3)
    pixels = to_file_pixels(large(color), large(picture.alpha), picture)
    cut = SCALE * (picture.height // 2)
    bands = [band for band in (pixels[:cut], pixels[cut:]) if len(band)]
    for band in bands:
        for part in sink.parts(band):
            sink.commit(part)
    sink.finish()
    assert sink.sha256() in (None, hashlib.sha256(buffer.getvalue()).hexdigest())
    return buffer.getvalue()


class TestDecoding:
    @pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "AVIF"])
    def test_rgb(self, file_format: str) -> None:
        lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}, "AVIF": {"quality": 100}}
        picture = decode(saved(Image.fromarray(gradient()), file_format, **lossless.get(file_format, {})))
        assert (picture.depth, picture.grey, picture.alpha) == (8, False, None)
        assert picture.format == file_format
        assert np.abs(picture.color.astype(int) - gradient()).max() <= LOSSY_LEVELS

    def test_grey_stays_grey(self) -> None:
        picture = decode(saved(Image.fromarray(gradient()[..., 0])))
        assert picture.grey
        assert np.array_equal(picture.color, gradient()[..., 0])

    def test_one_bit(self) -> None:
        bits = gradient()[..., 0] > 90
        picture = decode(saved(Image.fromarray(bits)))
        assert picture.grey
        assert np.array_equal(picture.color, bits * np.uint8(255))

    def test_alpha(self) -> None:
        picture = decode(saved(Image.fromarray(gradient(channels=4))))
        assert picture.channels == 4
        assert np.array_equal(picture.alpha, gradient(channels=4)[..., 3])
        assert np.array_equal(picture.color, gradient())

    def test_grey_with_alpha(self) -> None:
        picture = decode(saved(Image.fromarray(gradient(channels=2))))
        assert picture.channels == 2

    def test_palettes(self) -> None:
        image = Image.fromarray(gradient()).quantize(16)
        assert np.array_equal(decode(saved(image)).color, np.asarray(image.convert("RGB")))
        transparent = decode(saved(image, transparency=3))
        assert transparent.alpha is not None
        assert set(np.unique(transparent.alpha)) == {0, 255}

    def test_colour_keys(self) -> None:
        grey = decode(saved(Image.fromarray(gradient()[..., 0]), transparency=9))
        assert grey.grey
        assert grey.alpha is not None
        color = decode(saved(Image.fromarray(gradient()), transparency=(0, 1, 0)))
        assert color.alpha is not None
        assert color.alpha[0, 0] == 0

    def test_cmyk_with_and_without_a_profile(self) -> None:
        image = Image.fromarray(gradient()).convert("CMYK")
        picture = decode(saved(image, "JPEG", quality=100))
        assert np.abs(picture.color.astype(int) - gradient()).max() <= LOSSY_LEVELS
        assert "CMYK" in picture.notes[0]
        damaged = decode(saved(image, "TIFF", icc_profile=b"no profile at all"))
        assert damaged.icc == b""
        assert "damaged" in damaged.notes[0]

    @pytest.mark.parametrize("write", [deep_png, deep_tiff])
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_sixteen_bits_are_all_read(self, write: Any, channels: int) -> None:
        if write is deep_tiff and channels == 2:
            pytest.skip("Pillow reads no 16-bit TIFF with grey and alpha")
        rng = np.random.default_rng(1)
        image = rng.integers(0, 65536, (9, 7, channels), dtype=np.uint16)
        image[..., -1] |= 1  # nothing fully transparent: its colour would be filled
        image = image[..., 0] if channels == 1 else image
        picture = decode(write(image))
        assert picture.depth == 16
        assert picture.channels == channels
        planes = [picture.color if picture.grey else picture.color[..., i] for i in range(1 if picture.grey else 3)]
        planes += [] if picture.alpha is None else [picture.alpha]
        got = np.rint(np.dstack(planes) * 65535).astype(np.uint16)
        assert np.array_equal(got.reshape(image.shape), image)

    def test_a_size_is_read_without_decoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = saved(Image.new("RGB", (31, 17)))
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("all pixels were decoded"))
        assert read_size(data) == (17, 31, "PNG")

    def test_orientation_behind_the_pixels_counts(self) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        data = saved(Image.new("RGB", (31, 17))).removesuffix(png.tail())
        data += b"".join(png.chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))) + png.tail()
        assert read_size(data) == (31, 17, "PNG")
        assert (decode(data).height, decode(data).width) == (31, 17)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("deep", [False, True])
    def test_orientation_is_applied_and_reset(self, orientation: int, deep: bool) -> None:
        from PIL import ImageOps

        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        exif[ExifTags.Base.Make] = "Maker"
        upright = Image.fromarray(gradient())
        data = saved(upright, exif=exif)
        if deep:
            wide = gradient().astype(np.uint16) * 257
            stream = png.Stream()
            data = png.head(20, 12, 3, 16, exif=exif.tobytes()[6:])
            data += b"".join([*stream.chunk(png.deflated(wide, 6)), *stream.end()]) + png.tail()
        picture = decode(data)
        with Image.open(io.BytesIO(saved(upright, exif=exif))) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        color = np.rint(picture.color * 255).astype(np.uint8) if deep else picture.color
        assert np.array_equal(color, expected)
        assert read_size(data)[:2] == expected.shape[:2]
        kept = Image.Exif()
        kept.load(picture.exif)
        assert kept[ExifTags.Base.Orientation] == 1
        assert kept[ExifTags.Base.Make] == "Maker"

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty"),
            (b"hello, I am a text file", "not an image"),
            (saved(Image.fromarray(gradient(200, 200)))[:300], "truncated|damaged"),
            (saved(Image.fromarray(gradient(200, 200)), "JPEG")[:900], "truncated|damaged"),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "not an image|damaged"),
        ],
    )
    def test_bad_files_say_why(self, data: bytes, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            decode(data)

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize(
        "options",
        [
            {"subsampling": 0},
            {"subsampling": 2},
            {"quality": 20, "progressive": True},
            {"restart_marker_rows": 1},
            {"icc_profile": b"a profile", "dpi": (72, 72)},
        ],
    )
    def test_a_whole_jpeg_has_pillows_pixels_without_pillow(
        self, monkeypatch: pytest.MonkeyPatch, mode: str, options: dict[str, Any]
    ) -> None:
        pytest.importorskip("imagecodecs")
        data = saved(Image.fromarray(gradient(37, 53)).convert(mode), "JPEG", **options)
        expected = np.asarray(Image.open(io.BytesIO(data)))
        # More behind its end may be anything, so Pillow has a look.
        assert np.array_equal(decode(data + b"more").color, expected)
        monkeypatch.setattr(ImageFile.ImageFile, "load", None)
        color = decode(data).color
        assert np.array_equal(color, expected)
        assert color.flags.writeable  # an engine may take it as it is
        with pytest.raises(InputError):
            decode(data[: len(data) // 2])

    def test_a_bomb_is_refused_by_its_header(self) -> None:
        data = png.head(60_000, 60_000, 3, 8) + b"".join(png.chunk(b"IDAT", b"")) + png.tail()
        with pytest.raises(InputError, match="bomb"):
            decode(data)

    @pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "GIF"])
    def test_animations_are_refused(self, file_format: str) -> None:
        frames = [Image.fromarray(gradient() + np.uint8(index * 9)) for index in range(3)]
        data = saved(frames[0], file_format, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="3 frames"):
            decode(data)

    def test_floats_are_refused(self) -> None:
        with pytest.raises(InputError, match="no agreed white"):
            decode(saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


class TestTransparency:
    def test_hidden_colour_comes_from_around(self) -> None:
        color = np.zeros((16, 16, 3), np.uint8)
        color[:, :8] = (200, 30, 30)
        alpha = np.zeros((16, 16), np.uint8)
        alpha[:, :8] = 255
        filled = fill_transparent(color, alpha)
        assert np.array_equal(filled[:, :8], color[:, :8])
        assert np.abs(filled[:, 8:].astype(int) - (200, 30, 30)).max() <= 1

    @pytest.mark.parametrize("value", [0, 255])
    def test_all_or_nothing_is_left_alone(self, value: int) -> None:
        color = gradient()
        assert fill_transparent(color, np.full(color.shape[:2], value, np.uint8)) is color


class TestWriting:
    @pytest.mark.parametrize("format_name", ["png", "jpeg", "webp", "avif", "tiff", "bmp"])
    @pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
    def test_pixels(self, format_name: str, mode: str) -> None:
        channels = len(Image.new(mode, (1, 1)).getbands())
        image = Image.fromarray(np.squeeze(gradient(channels=channels)))
        data = written(decode(saved(image)), format_name)
        with Image.open(io.BytesIO(data)) as result:
            assert result.size == (80, 48)
            if format_name in ("png", "tiff"):
                assert result.mode == mode
                assert np.array_equal(np.asarray(result)[::4, ::4], np.asarray(image))
            elif format_name in ("jpeg", "bmp"):
                assert result.mode == mode.removesuffix("A")  # shown on white

    @pytest.mark.parametrize("format_name", ["png", "tiff"])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_sixteen_bits(self, format_name: str, channels: int) -> None:
        image = np.random.default_rng(2).integers(1, 65536, (10, 8, channels), dtype=np.uint16)
        image = image[..., 0] if channels == 1 else image
        picture = decode(deep_png(image))
        again = decode(written(picture, format_name))
        assert again.depth == 16
        assert np.array_equal(again.color[::4, ::4], picture.color)

    def test_sixteen_bits_become_eight_where_the_format_has_no_more(self) -> None:
        picture = decode(deep_png(gradient().astype(np.uint16) * 257))
        picture.color = (picture.color * 255).round().astype(np.uint8)
        with Image.open(io.BytesIO(written(picture, "jpeg"))) as result:
            assert result.mode == "RGB"

    @pytest.mark.parametrize(
        ("format_name", "settings"),
        [("png", {}), ("png", {"png_compression": "small"}), ("jpeg", {}), ("webp", {}), ("avif", {}), ("tiff", {})],
    )
    def test_profile_exif_and_resolution_survive(self, format_name: str, settings: Any) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Make] = "Maker"
        exif[ExifTags.Base.Orientation] = 6
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight] = 20, 12
        source = saved(Image.fromarray(gradient()), "JPEG", icc_profile=srgb(), exif=exif, dpi=(72, 72))
        with Image.open(io.BytesIO(written(decode(source), format_name, **settings))) as result:
            assert result.size == (48, 80)
            assert result.info["icc_profile"] == srgb()
            kept = result.getexif()
            assert kept[ExifTags.Base.Make] == "Maker"
            assert kept.get(ExifTags.Base.Orientation, 1) == 1
            assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 48
            if format_name in ("png", "jpeg", "tiff"):
                assert result.info["dpi"] == pytest.approx((288, 288), abs=0.5)

    @pytest.mark.parametrize("format_name", ["png", "jpeg", "webp", "avif", "tiff"])
    @pytest.mark.parametrize(
        "exif",
        [b"garbage that is no TIFF", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\x69\x87" * 99],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_a_damaged_exif_block_does_not_cost_the_picture(self, format_name: str, exif: bytes) -> None:
        source = saved(Image.fromarray(gradient()), "JPEG", exif=b"Exif\0\0" + exif)
        with Image.open(io.BytesIO(written(decode(source), format_name))) as result:
            assert result.size == (80, 48)

    def test_a_tiffs_photograph_tags_survive_and_its_layout_does_not(self) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Artist] = "me"
        data = written(decode(saved(Image.fromarray(gradient()), "TIFF", exif=exif)), "png")
        with Image.open(io.BytesIO(data)) as result:
            kept = result.getexif()
            assert kept[ExifTags.Base.Artist] == "me"
            assert ExifTags.Base.StripOffsets not in kept

    @pytest.mark.parametrize(
        ("name", "side"), [("webp", 16_384), ("jpeg", 65_536), ("avif", 65_536), ("tiff", 40_000), ("bmp", 40_000)]
    )
    def test_what_a_format_cannot_hold_is_said(self, name: str, side: int) -> None:
        with pytest.raises(InputError, match=name):
            check_holds(FORMATS[name], side, side, 3, deep=False)
        check_holds(FORMATS["png"], side, side, 3, deep=False)
