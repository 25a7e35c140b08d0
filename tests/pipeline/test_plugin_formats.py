"""HEIC and JPEG XL through their plugins: read with orientation, profile and depth; named where they are missing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import numpy as np
import pillow_heif as heif
import pytest
from PIL import Image, ImageCms

from espan_deploy.errors import InputError
from espan_deploy.pipeline import plugins
from espan_deploy.pipeline.decode import MAX_PIXELS, decode, read_origin, read_size
from espan_deploy.pipeline.jxl import coded_lossily

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[0:160:40j, 0:200:56j], 90), -1).astype(np.uint8)
"""(40, 56, 3): lossy coding keeps it within a few levels."""
CLOSE = 6


def picture_of(format_name: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(SMOOTH)
    if format_name == "HEIF":
        heif.from_pillow(image).save(file, **settings)
    else:
        image.save(file, format_name, **settings)
    return file.getvalue()


@pytest.fixture
def reads_heif() -> None:
    pytest.importorskip("pi_heif")


@pytest.fixture
def reads_jxl() -> None:
    pytest.importorskip("pylibjxl", reason="pylibjxl needs Python 3.11")
    plugins.enable("JXL")


@pytest.fixture
def without_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for plugin in plugins.PLUGINS.values():
        monkeypatch.setitem(sys.modules, plugin.module, None)
    plugins.enable.cache_clear()
    yield
    plugins.enable.cache_clear()


@pytest.mark.usefixtures("reads_heif")
def test_heic_is_read_upright_with_its_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    data = picture_of("HEIF", quality=95, exif=exif.tobytes(), icc_profile=PROFILE)
    assert read_size(data) == (56, 40, "HEIF")
    picture = decode(data)
    assert (picture.height, picture.width, picture.depth) == (56, 40, 8)
    upright = SMOOTH.swapaxes(0, 1)[:, ::-1]
    assert np.abs(picture.color.astype(int) - upright).max() <= CLOSE
    assert picture.icc == PROFILE
    assert b"maker" in picture.exif
    assert read_origin(data).lossy


@pytest.mark.usefixtures("reads_heif")
def test_heic_of_ten_bits_keeps_them() -> None:
    values = np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64, 1).repeat(3, 2)
    file = io.BytesIO()
    heif.from_bytes("RGB;16", (64, 64), values.tobytes()).save(file, quality=-1, chroma=444)
    picture = decode(file.getvalue())
    assert picture.depth == 16
    assert picture.color.dtype == np.float32
    assert picture.color.max() > 0.99
    assert np.abs(picture.color - values / 65535).max() < 4 / 1023
    assert len(np.unique(picture.color)) > 300  # eight bits have no more than 256


@pytest.mark.usefixtures("reads_jxl")
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_lossless_jpeg_xl_is_read_exactly(mode: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    file = io.BytesIO()
    image.save(file, "JXL", lossless=True)
    assert read_size(file.getvalue()) == (40, 56, "JXL")
    picture = decode(file.getvalue())
    np.testing.assert_array_equal(picture.color, np.asarray(image)[..., :3] if mode == "RGBA" else np.asarray(image))
    assert not read_origin(file.getvalue()).lossy


@pytest.mark.usefixtures("reads_jxl")
def test_jpeg_xl_keeps_its_profile_and_exif() -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    picture = decode(picture_of("JXL", lossless=True, icc_profile=PROFILE, exif=exif.tobytes()))
    assert picture.icc == PROFILE
    assert b"maker" in picture.exif


@pytest.mark.usefixtures("reads_jxl")
def test_exif_does_not_turn_jpeg_xl_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the codestream's orientation counts, and is none
    data = picture_of("JXL", lossless=True, exif=exif.tobytes())
    assert read_size(data) == (40, 56, "JXL")
    assert decode(data).color.shape == (40, 56, 3)


@pytest.mark.parametrize(
    ("head", "lossy"),
    [
        ("0|00|000001000|000|00|000011110|1", True),  # 31x9, everything at its default
        ("1|00001|011|1", True),  # a ratio
        ("1|00001|001|0|1|101|0|0|0|0|01|0|00|0", False),  # turned, ten bits, no XYB
        ("1|00001|001|0|0|0|00|0|01|1|1", True),  # an alpha channel, XYB
        ("1|00001|001|0|0|1|11|000000|0111|0|00|0", False),  # floating point
    ],
)
def test_heads_of_jpeg_xl(head: str, lossy: bool) -> None:
    """Fields between bars, each with its highest bit first; the file has the lowest first."""
    value = at = 0
    for field in head.split("|"):
        value |= int(field, 2) << at
        at += len(field)
    assert coded_lossily(b"\xff\x0a" + value.to_bytes(16, "little")) is lossy


@pytest.mark.usefixtures("reads_jxl")
def test_a_jpeg_within_jpeg_xl_is_lossy() -> None:
    import pylibjxl

    data = pylibjxl.jpeg_to_jxl(picture_of("JPEG", quality=70))
    assert read_origin(data).lossy
    assert decode(data).color.shape == (40, 56, 3)


@pytest.mark.usefixtures("reads_jxl")
def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    side = (1 << 18) - 1
    assert side * side > MAX_PIXELS
    value = at = 0
    for number, bits in ((0, 1), (2, 2), (side - 1, 18), (0, 3), (2, 2), (side - 1, 18), (1, 1)):
        value |= number << at
        at += bits
    with pytest.raises(InputError, match="decompression bomb"):
        decode(b"\xff\x0a" + value.to_bytes(64, "little"))


@pytest.mark.usefixtures("reads_jxl", "reads_heif")
@pytest.mark.parametrize("format_name", ["JXL", "HEIF"])
def test_damaged_files_are_refused(format_name: str) -> None:
    data = picture_of(format_name)
    for damaged in (data[: len(data) // 2], data[:20]):
        with pytest.raises(InputError):
            decode(damaged)


@pytest.mark.usefixtures("without_plugins")
@pytest.mark.parametrize(
    ("head", "title"),
    [(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"), (b"\xff\x0a\x00\x00", "JPEG XL")],
)
def test_without_the_extra_the_message_names_it(head: bytes, title: str) -> None:
    for read in (decode, read_size, read_origin):
        with pytest.raises(InputError, match=title) as caught:
            read(head)
        assert caught.value.hint is not None
        assert caught.value.hint.startswith("pip install 'espan-deploy[formats]'")


def test_avif_needs_no_plugin() -> None:
    data = picture_of("AVIF")
    assert plugins.plugin_format(data) is None
    assert decode(data).color.shape == (40, 56, 3)
