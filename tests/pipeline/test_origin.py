"""What a file's head says about how its pixels were kept."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from espan_deploy.errors import InputError
from espan_deploy.pipeline.decode import read_origin
from espan_deploy.pipeline.origin import Origin, jpeg_quality, origin_of

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def saved(format_name: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    NOISE.save(file, format_name, **settings)
    return file.getvalue()


@pytest.mark.parametrize("quality", [1, 25, 49, 50, 75, 90, 95, 100])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_tells_its_quality(quality: int, subsampling: int) -> None:
    origin = read_origin(saved("JPEG", quality=quality, subsampling=subsampling))
    assert origin == Origin(True, f"JPEG of quality {quality}", quality)


def test_other_encoders_tables_have_the_nearest_quality() -> None:
    flat = [16] * 64  # as some cameras write
    origin = read_origin(saved("JPEG", qtables=[flat, flat]))
    assert origin.told_by.startswith("JPEG of about quality ")
    assert origin.jpeg_quality == jpeg_quality(flat)[0]
    finer = jpeg_quality([2] * 64)[0]
    assert 95 < finer <= 100
    assert finer > jpeg_quality(flat)[0] > jpeg_quality([60] * 64)[0]


def test_a_photograph_with_further_pictures_is_a_jpeg() -> None:
    file = io.BytesIO()
    NOISE.save(file, "MPO", save_all=True, append_images=[NOISE], quality=80)
    assert read_origin(file.getvalue()).jpeg_quality == 80


@pytest.mark.parametrize(
    ("format_name", "settings", "lossy"),
    [
        ("PNG", {}, False),
        ("BMP", {}, False),
        ("GIF", {}, False),
        ("TIFF", {}, False),
        ("TIFF", {"compression": "tiff_lzw"}, False),
        ("TIFF", {"compression": "jpeg"}, True),
        ("WEBP", {}, True),
        ("WEBP", {"lossless": True}, False),
        ("WEBP", {"lossless": True, "icc_profile": b"x" * 301}, False),
        ("WEBP", {"icc_profile": b"x" * 301}, True),
        ("AVIF", {}, True),
    ],
)
def test_lossy_and_lossless_files_are_told_apart(format_name: str, settings: dict[str, Any], lossy: bool) -> None:
    origin = read_origin(saved(format_name, **settings))
    assert origin.lossy is lossy
    assert origin.jpeg_quality is None
    assert origin.newer is (lossy and format_name in ("WEBP", "AVIF"))
    assert {"WEBP": "WebP"}.get(format_name, format_name) in origin.told_by


def test_what_is_no_picture_has_no_origin() -> None:
    with pytest.raises(InputError, match="not an image"):
        read_origin(b"not a picture at all")


@pytest.mark.parametrize(("format_name", "settings"), [("JPEG", {"quality": 80}), ("PNG", {}), ("AVIF", {})])
def test_an_opened_image_tells_what_its_file_does(format_name: str, settings: dict[str, Any]) -> None:
    data = saved(format_name, **settings)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert origin_of(image, b"") == read_origin(data)


def test_where_only_the_head_would_tell_an_opened_image_counts_as_lossy() -> None:
    with Image.open(io.BytesIO(saved("WEBP", lossless=True))) as image:
        assert origin_of(image, b"") == Origin(True, "WebP", newer=True)


def test_an_image_made_in_memory_says_nothing() -> None:
    with Image.open(io.BytesIO(saved("JPEG"))) as image:
        turned = image.rotate(90)
    for made in (NOISE, turned):
        assert origin_of(made, b"") == Origin(False, "nothing says how it was kept")
