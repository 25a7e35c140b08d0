"""Numbers to RGB and back: every matrix, range and depth, within a level."""

from __future__ import annotations

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV, of the extra 'video', is not installed")

from espan_deploy.errors import InputError  # noqa: E402
from espan_deploy.video.colour import (  # noqa: E402
    BT601_525,
    BT601_625,
    BT709,
    BT2020,
    RGB,
    UNSPECIFIED,
    Colour,
    FromRGB,
    Pixels,
    ToRGB,
    colour_of,
)

LUMA = {BT709: (0.2126, 0.0722), BT601_625: (0.299, 0.114), BT601_525: (0.299, 0.114), BT2020: (0.2627, 0.0593)}
"""Kr and Kb of H.273, table 4, written here once more: the product's own are what is tested."""

SIDE = 16
"""Pixels of a flat field: its centre is further from its border than chroma's filters reach."""

CENTRES = (slice(SIDE // 2, None, SIDE), slice(SIDE // 2, None, SIDE))

ONE_LEVEL = 1.0

MATRICES = pytest.mark.parametrize("matrix", sorted(LUMA), ids=lambda code: f"matrix{code}")
RANGES = pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])


def flat_fields() -> Pixels:
    """(H, W, 3) uint8: squares of colours from the whole cube."""
    steps = np.linspace(0, 255, 8).astype(np.uint8)
    colours = np.array(np.meshgrid(steps, steps, steps)).reshape(3, -1).T
    return colours.reshape(16, 32, 3).repeat(SIDE, 0).repeat(SIDE, 1)


def by_definition(rgb: Pixels, matrix: int, full_range: bool, depth: int) -> Pixels:
    """H.273, equations 31 to 36 and 20 to 28, without rounding. rgb in [0, 1]."""
    red, blue = LUMA[matrix]
    luma = red * rgb[..., 0] + (1 - red - blue) * rgb[..., 1] + blue * rgb[..., 2]
    chroma = ((rgb[..., 2] - luma) / (2 * (1 - blue)), (rgb[..., 0] - luma) / (2 * (1 - red)))
    if full_range:
        most = 2**depth - 1
        planes = [luma * most, *(part * most + 2 ** (depth - 1) for part in chroma)]
    else:
        step = 2 ** (depth - 8)
        planes = [(16 + 219 * luma) * step, *((128 + 224 * part) * step for part in chroma)]
    return np.stack(planes, -1)


def planes_of(frame: av.VideoFrame) -> Pixels:
    """(H, W, 3): chroma repeated to luma's size."""
    parts = []
    for plane in frame.planes:
        kind = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
        part = np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width]
        parts.append(part.repeat(frame.height // plane.height, 0).repeat(frame.width // plane.width, 1))
    return np.stack(parts, -1).astype(np.float64)


@MATRICES
@RANGES
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "yuv444p12le"])
def test_rgb_becomes_what_the_standard_says(matrix: int, full_range: bool, pixel_format: str) -> None:
    fields = flat_fields()
    frame = FromRGB(Colour(matrix, full_range, 1, 1), pixel_format)(fields)
    depth = frame.format.components[0].bits
    expected = by_definition(fields / 255.0, matrix, full_range, depth)
    # A level of 8 bits: full range divides by 255 or 256 depending on who reads the standard, which shows below that.
    assert np.abs(planes_of(frame) - expected)[CENTRES].max() <= (ONE_LEVEL + 0.1) * 2 ** (depth - 8)


@MATRICES
@RANGES
@pytest.mark.parametrize(("pixel_format", "depth"), [("yuv420p", 8), ("yuv420p10le", 10), ("yuv444p12le", 12)])
def test_a_flat_field_of_every_colour_survives_within_a_level(
    matrix: int, full_range: bool, pixel_format: str, depth: int
) -> None:
    colour = Colour(matrix, full_range, 1, 1)
    write, read = FromRGB(colour, pixel_format), ToRGB(colour, depth=depth)
    first = write(flat_fields())
    pixels = read(first)
    assert pixels.dtype == (np.uint8 if depth == 8 else np.float32)
    again = write(pixels)
    assert np.abs(planes_of(again) - planes_of(first))[CENTRES].max() <= ONE_LEVEL


def test_rgb_frames_pass_unchanged() -> None:
    fields = flat_fields()
    for pixel_format in ("bgr0", "gbrp", "rgb24"):
        frame = FromRGB(Colour(RGB, True, 1, 1), pixel_format)(fields)
        assert np.array_equal(ToRGB(Colour(RGB, True, 1, 1), depth=8)(frame), fields)


def test_deep_rgb_frames_pass_unchanged() -> None:
    fields = flat_fields()[::SIDE, ::SIDE].astype(np.float32) / np.float32(255)
    colour = Colour(RGB, True, 1, 1)
    read = ToRGB(colour, depth=10)(FromRGB(colour, "gbrp10le")(fields))
    assert np.array_equal(np.rint(read * 1023), np.rint(fields * 1023))


@pytest.mark.parametrize(
    ("height", "width", "matrix", "primaries"),
    [(576, 720, BT601_625, BT601_625), (480, 720, BT601_525, BT601_525), (720, 1280, BT709, BT709)],
)
def test_what_is_not_said_is_guessed_as_players_do_and_named(
    height: int, width: int, matrix: int, primaries: int
) -> None:
    colour = colour_of(
        matrix=UNSPECIFIED,
        full_range=None,
        primaries=UNSPECIFIED,
        transfer=UNSPECIFIED,
        is_rgb=False,
        height=height,
        width=width,
    )
    assert (colour.matrix, colour.primaries, colour.full_range) == (matrix, primaries, False)
    assert len(colour.guessed) == 2


def test_a_matrix_that_cannot_be_converted_is_refused() -> None:
    with pytest.raises(InputError, match="matrix 14"):
        colour_of(matrix=14, full_range=False, primaries=9, transfer=16, is_rgb=False, height=720, width=1280)
