"""JPEG in strips: the same pixels as compressed in one piece."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from espan_deploy.pipeline import jpeg
from espan_deploy.pipeline.encode import FORMATS, EncodeSettings, JpegSink, PillowSink, open_sink
from espan_deploy.pipeline.picture import Picture


def photograph(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    planes = [128 + 90 * np.sin(x / 7 + c) * np.cos(y / 11 - c) + rng.normal(0, 15, (height, width)) for c in range(3)]
    pixels = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    return pixels if channels == 3 else pixels[..., 0]


def written(pixels: NDArray[np.uint8], cuts: list[int], quality: int = 90, **head: Any) -> bytes:
    """Through the sink, in bands that end at the cuts."""
    buffer = io.BytesIO()
    sink = open_sink(
        buffer, FORMATS["jpeg"], EncodeSettings(quality), Picture(pixels, None, 8, "JPEG", **head), 1, deep=False
    )
    for low, high in zip([0, *cuts], [*cuts, len(pixels)], strict=True):
        for part in sink.parts(pixels[low:high]):
            sink.commit(part)
    sink.finish()
    return buffer.getvalue()


def whole(pixels: NDArray[np.uint8], quality: int = 90) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(buffer))


@pytest.fixture
def low_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "STRIP_BYTES", 1)  # strips of 8 rows


@pytest.fixture(params=["imagecodecs", "Pillow"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "imagecodecs":
        pytest.importorskip("imagecodecs")
    else:
        monkeypatch.setattr(jpeg, "compressor", lambda: jpeg._by_pillow)
    return str(request.param)


@pytest.mark.usefixtures("low_strips", "encoder")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [30, 100])
@pytest.mark.parametrize(
    ("shape", "cuts"), [((1, 1), []), ((64, 40), []), ((150, 33), [7, 71]), ((640, 101), [9, 264])]
)
def test_strips_hold_what_the_whole_would(shape: tuple[int, int], cuts: list[int], channels: int, quality: int) -> None:
    pixels = photograph(*shape, channels)
    file = written(pixels, cuts, quality)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), whole(pixels, quality))
    markers = sum(file.count(jpeg.restart_marker(number)) for number in range(1, 9))
    assert markers == (shape[0] - 1) // 8


def test_strips_are_of_a_size() -> None:
    assert jpeg.strip_rows(65_535, 3) == jpeg.BLOCK
    assert jpeg.strip_rows(2040, 3) % jpeg.BLOCK == 0
    assert jpeg.STRIP_BYTES / 2 < jpeg.strip_rows(2040, 3) * 3 * 2040 <= jpeg.STRIP_BYTES
    assert jpeg.strip_rows(8, 1) // jpeg.BLOCK <= jpeg.MAX_INTERVAL  # blocks between two markers


@pytest.mark.usefixtures("low_strips")
def test_profile_and_resolution_are_in_the_one_head() -> None:
    file = written(photograph(200, 20, 3), [100], icc=b"profile" * 100, dpi=(300.0, 300.0))
    with Image.open(io.BytesIO(file)) as image:
        assert image.size == (20, 200)
        assert image.info["icc_profile"] == b"profile" * 100
        assert image.info["dpi"] == (300, 300)
    assert file.count(b"ICC_PROFILE") == 1


def test_an_encoder_with_tables_for_each_image_gets_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = photograph(150, 33, 3)
    picture = Picture(pixels, None, 8, "JPEG")
    assert isinstance(open_sink(io.BytesIO(), FORMATS["jpeg"], EncodeSettings(), picture, 1, deep=False), JpegSink)

    def optimised(strip: NDArray[np.uint8], quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
        return buffer.getvalue()

    monkeypatch.setattr(jpeg, "compressor", lambda: optimised)
    jpeg.can_be_spliced.cache_clear()
    try:
        assert not jpeg.can_be_spliced()
        sink = open_sink(io.BytesIO(), FORMATS["jpeg"], EncodeSettings(), picture, 1, deep=False)
        assert isinstance(sink, PillowSink)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(written(pixels, [64])))), whole(pixels))
    finally:
        jpeg.can_be_spliced.cache_clear()
