"""What a film's numbers mean, and the way to RGB and back, every parameter given: no library's default decides.

Code points are those of ITU-T H.273, which FFmpeg uses too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from av import VideoFormat, VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from espan_deploy.errors import InputError

Pixels = NDArray[Any]

UNSPECIFIED = 2
RGB = 0
BT709, FCC, BT601_625, BT601_525, SMPTE240M, BT2020 = 1, 4, 5, 6, 7, 9

MATRICES = {
    RGB: "RGB",
    BT709: "BT.709",
    FCC: "FCC",
    BT601_625: "BT.601",
    BT601_525: "BT.601",
    SMPTE240M: "SMPTE 240M",
    BT2020: "BT.2020",
}
"""Those that can be converted exactly. Not among them: constant luminance, YCgCo, ICtCp."""

LUMA_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    FCC: (0.30, 0.11),
    BT601_625: (0.299, 0.114),
    BT601_525: (0.299, 0.114),
    SMPTE240M: (0.212, 0.087),
    BT2020: (0.2627, 0.0593),
}
"""Kr and Kb of H.273, table 4."""

PQ, HLG = 16, 18
HDR_TRANSFERS = {PQ: "PQ", HLG: "HLG"}

LIMITED, FULL = 1, 2
"""FFmpeg's colour ranges."""

FLAGS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
"""Bicubic for chroma, and no shortcut in its arithmetic."""

HD_WIDTH, SD_HEIGHT = 1280, 576
"""Players take unspecified colours for BT.709 from the one width on, or above the other height, else for BT.601."""

SD_PRIMARIES = {576: BT601_625, 480: BT601_525, 488: BT601_525}
"""By height, for unspecified primaries; others are BT.709's."""


@dataclass(frozen=True)
class Colour:
    """matrix, primaries, transfer: of H.273. full_range: whether black is 0. guessed: what the film does not say."""

    matrix: int
    full_range: bool
    primaries: int
    transfer: int
    guessed: tuple[str, ...] = ()

    @property
    def range(self) -> int:
        """FFmpeg's code for the range."""
        return FULL if self.full_range else LIMITED

    def __str__(self) -> str:
        """As people say it."""
        if self.matrix == RGB:
            return "RGB"
        name = f"{MATRICES[self.matrix]}, {'full' if self.full_range else 'limited'} range"
        transfer = HDR_TRANSFERS.get(self.transfer)
        return f"{name}, {transfer}" if transfer else name


def colour_of(
    *, matrix: int, full_range: bool | None, primaries: int, transfer: int, is_rgb: bool, height: int, width: int
) -> Colour:
    """A stream's colour; what it leaves open is taken as players take it, and named in ``guessed``.

    full_range: None where it is not said. Raises InputError for a matrix that cannot be converted.
    """
    guessed = []
    if is_rgb:
        matrix, full_range = RGB, True
    elif matrix in (UNSPECIFIED, RGB):
        matrix = BT709 if width >= HD_WIDTH or height > SD_HEIGHT else SD_PRIMARIES.get(height, BT601_525)
        guessed.append(f"matrix {MATRICES[matrix]}")
    elif matrix not in MATRICES:
        raise InputError(
            f"its colours are coded by matrix {matrix} of H.273, which cannot be converted exactly",
            hint=f"convert it to one of {', '.join(dict.fromkeys(MATRICES.values()))} first",
        )
    if full_range is None:
        full_range = False
        guessed.append("limited range")
    if primaries == UNSPECIFIED and not is_rgb:
        # Players guess these from the height, and the result is higher.
        primaries = BT2020 if matrix == BT2020 else BT709 if width >= HD_WIDTH else SD_PRIMARIES.get(height, BT709)
    return Colour(matrix, full_range, primaries, transfer, tuple(guessed))


class _Converter:
    """libswscale with every parameter given."""

    def __init__(self, colour: Colour, bits: int) -> None:
        self.colour = colour
        self._bits = bits
        self._reformatter = VideoReformatter()

    def _reformatted(self, frame: VideoFrame, pixel_format: str, *, from_range: int, to_range: int) -> VideoFrame:
        # The matrix as libswscale knows it: BT.601 has one code, and RGB needs none.
        matrix = {RGB: BT709, BT601_525: BT601_625}.get(self.colour.matrix, self.colour.matrix)
        return self._reformatter.reformat(
            frame,
            format=pixel_format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=from_range,
            dst_color_range=to_range,
            interpolation=FLAGS,
        )


class ToRGB(_Converter):
    """Decoded frames to the pixels a network takes. For one thread.

    Eight bits go through libswscale. Deeper ones only have their chroma enlarged there, for its matrix of 16 bits is up
    to 15 levels of 12 bits off; the matrix is ours, in float32.
    """

    def __init__(self, colour: Colour, *, depth: int) -> None:
        super().__init__(colour, 8 if depth <= 8 else 10 if depth <= 10 else 12)

    def __call__(self, frame: VideoFrame) -> Pixels:
        """(H, W, 3), uint8; float32 where the film is deep: white is 1, and brighter values survive."""
        if self._bits == 8:
            small = self._reformatted(frame, "rgb24", from_range=self.colour.range, to_range=FULL)
            shallow: Pixels = np.ascontiguousarray(small.to_ndarray())
            return shallow
        stored = self.colour.range
        planar = _planar(self.colour, self._bits)
        planes = _planes(self._reformatted(frame, planar, from_range=stored, to_range=stored))
        if self.colour.matrix == RGB:
            deep: Pixels = np.stack(planes, -1)[..., GBR_TO_RGB] / np.float32(2**self._bits - 1)
            return deep
        offset, scale = _steps(self.colour, self._bits)
        parts = (np.stack(planes, -1).astype(np.float32) - offset) / scale
        return parts @ np.linalg.inv(_matrix(self.colour)).T.astype(np.float32)  # type: ignore[no-any-return]


class FromRGB(_Converter):
    """The network's pixels to frames as an encoder takes them, by the way that :class:`ToRGB` came. For one thread."""

    def __init__(self, colour: Colour, pixel_format: str) -> None:
        super().__init__(colour, VideoFormat(pixel_format).components[0].bits)
        self.pixel_format = pixel_format

    def __call__(self, pixels: Pixels) -> VideoFrame:
        """pixels: (H, W, 3), uint8, or float32 that is rounded to the levels there are."""
        if pixels.dtype == np.uint8:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            return self._reformatted(frame, self.pixel_format, from_range=FULL, to_range=self.colour.range)
        most = 2**self._bits - 1
        if self.colour.matrix == RGB:
            parts = pixels[..., RGB_TO_GBR] * np.float32(most)
        else:
            offset, scale = _steps(self.colour, self._bits)
            parts = pixels @ _matrix(self.colour).T.astype(np.float32) * scale + offset
        samples = np.rint(parts).clip(0, most).astype(np.uint16 if self._bits > 8 else np.uint8)
        planar = _planar(self.colour, self._bits)
        frame = VideoFrame(pixels.shape[1], pixels.shape[0], planar)
        for index, plane in enumerate(_planes(frame)):
            plane[...] = samples[..., index]
        stored = self.colour.range
        return self._reformatted(frame, self.pixel_format, from_range=stored, to_range=stored)


GBR_TO_RGB, RGB_TO_GBR = [2, 0, 1], [1, 2, 0]
"""FFmpeg's planes of RGB stand green first."""


def _planar(colour: Colour, bits: int) -> str:
    """The format of whole planes, one for each channel."""
    return ("gbrp" if colour.matrix == RGB else "yuv444p") + (f"{bits}le" if bits > 8 else "")


def _planes(frame: VideoFrame) -> list[Pixels]:
    """Views of a planar frame's samples, (H, W) each."""
    kind = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    return [
        np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes
    ]


def _matrix(colour: Colour) -> NDArray[np.float64]:
    """RGB to luma and the two chroma in [-1/2, 1/2] (H.273, equations 38 to 40)."""
    red, blue = LUMA_WEIGHTS[colour.matrix]
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack([luma, (np.array([0, 0, 1]) - luma) / (2 - 2 * blue), (np.array([1, 0, 0]) - luma) / (2 - 2 * red)])


def _steps(colour: Colour, bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the three channels have their zero, and how many levels are one (H.273, equations 20 to 28)."""
    middle = 2 ** (bits - 1)
    if colour.full_range:
        most = 2**bits - 1
        return np.array([0, middle, middle], np.float32), np.array([most] * 3, np.float32)
    level = 2 ** (bits - 8)
    return np.array([16 * level, middle, middle], np.float32), np.array([219, 224, 224], np.float32) * level
