"""How films are written: codecs, what they need, and one encoder that starts afresh for every segment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
from av.codec.context import Flags

from espan_deploy.errors import InputError
from espan_deploy.video.colour import RGB, Colour, FromRGB, Pixels
from espan_deploy.video.film import Film, reason
from espan_deploy.video.segments import SegmentWriter

os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 greets on stderr otherwise

UNKNOWN_RATE = Fraction(25)
"""Frames per second that an encoder's rate control assumes where the film does not say."""


@dataclass(frozen=True)
class VideoCodec:
    """One way to write a film.

    encoder: FFmpeg's name. formats: pixel format by bits per sample; a deeper film gets the deepest there is.
    suffixes: of the files that hold it; the first is taken where the film's own is none of them. quality: the
    encoder's option for constant quality, None where it has none; default: its value. preset: how
    much work the encoder spends on size, by its own names, None where it has none. rgb: whether it stores RGB.
    says_aspect: whether its stream says how wide a pixel is (what PyAV writes of containers does not).
    min_side: in pixels; smaller pictures are refused.
    """

    name: str
    encoder: str
    formats: Mapping[int, str]
    suffixes: tuple[str, ...]
    quality: str | None = "crf"
    default: int | None = None
    preset: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    rgb: bool = False
    says_aspect: bool = True
    min_side: int = 2

    def pixel_format(self, depth: int) -> str:
        """For a film of so many bits a sample."""
        return self.formats[min((bits for bits in self.formats if bits >= depth), default=max(self.formats))]

    @property
    def deep(self) -> bool:
        """Whether it holds more than 8 bits."""
        return max(self.formats) > 8


_NVENC = {"rc": "vbr", "b:v": "0"}
_MP4 = (".mp4", ".m4v", ".mov", ".mkv")

CODECS = (
    VideoCodec(
        "h264",
        "libx264",
        {8: "yuv420p", 10: "yuv420p10le"},
        (".mkv", *_MP4, ".ts", ".m2ts", ".mts"),
        default=18,
        preset="veryfast",
    ),
    VideoCodec(
        "h265",
        "libx265",
        {8: "yuv420p", 10: "yuv420p10le", 12: "yuv420p12le"},
        (".mkv", *_MP4, ".ts", ".m2ts", ".mts"),
        default=20,
        preset="veryfast",
        options={"x265-params": "log-level=error"},
        min_side=64,  # of narrower ones it writes past its memory
    ),
    VideoCodec(
        "av1",
        "libsvtav1",
        {8: "yuv420p", 10: "yuv420p10le"},
        (".mkv", ".mp4", ".webm"),
        default=28,
        preset="10",
        min_side=64,
    ),
    VideoCodec(
        "ffv1", "ffv1", {8: "bgr0", 10: "gbrp10le", 12: "gbrp12le"}, (".mkv",), None, rgb=True, says_aspect=False
    ),
    VideoCodec(
        "prores",
        "prores_ks",
        {10: "yuv422p10le"},
        (".mov", ".mkv"),
        None,
        options={"profile": "hq"},
        says_aspect=False,
    ),
    VideoCodec("h264_nvenc", "h264_nvenc", {8: "yuv420p"}, (".mkv", *_MP4), "cq", 20, "p5", _NVENC),
    VideoCodec("hevc_nvenc", "hevc_nvenc", {8: "yuv420p", 10: "p010le"}, (".mkv", *_MP4), "cq", 22, "p5", _NVENC),
    VideoCodec("av1_nvenc", "av1_nvenc", {8: "yuv420p", 10: "p010le"}, (".mkv", ".mp4"), "cq", 28, "p5", _NVENC),
)

SHALLOW, DEEP = "h264", "h265"
"""What a film of 8 bits, or of more, becomes by itself: players know H.264 everywhere, but few its 10 bits."""


def codec_named(name: str, film: Film) -> VideoCodec:
    """The row for a name, or for "auto". Raises InputError where there is none, or its encoder is not installed."""
    wanted = (DEEP if film.deep else SHALLOW) if name == "auto" else name
    codec = next((entry for entry in CODECS if entry.name == wanted), None)
    if codec is None or not is_installed(codec):
        there = ", ".join(entry.name for entry in CODECS if is_installed(entry))
        problem = "is not known" if codec is None else f"needs {codec.encoder}, which this PyAV does not have"
        raise InputError(f"the video codec {name} {problem}", hint=f"there are {there}")
    return codec


def is_installed(codec: VideoCodec) -> bool:
    """Whether this PyAV has the encoder; one that needs hardware may still refuse."""
    return codec.encoder in av.codecs_available


@dataclass(frozen=True)
class Encoding:
    """Everything that decides a film's encoded pictures.

    height, width: of the result. quality: None for the codec's default. threads: of the encoder.
    """

    codec: VideoCodec
    film: Film
    height: int
    width: int
    quality: int | None = None
    preset: str | None = None
    threads: int = 1

    @property
    def colour(self) -> Colour:
        """Of the encoded samples: the film's; a film in RGB becomes BT.709 where the codec is not RGB's."""
        film = self.film.colour
        if self.codec.rgb:
            return Colour(RGB, True, film.primaries, film.transfer)
        return Colour(1, False, film.primaries, film.transfer) if film.matrix == RGB else film

    @property
    def options(self) -> dict[str, str]:
        """For the encoder."""
        quality = self.codec.default if self.quality is None else self.quality
        chosen = {} if self.codec.quality is None else {self.codec.quality: str(quality)}
        if self.codec.preset is not None:
            chosen["preset"] = self.preset or self.codec.preset
        return {**self.codec.options, **chosen}

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the encoded bytes besides the pixels."""
        return {
            "encoder": self.codec.encoder,
            "options": self.options,
            "pixel_format": self.pixel_format,
            "threads": self.threads,
            "av": av.__version__,
        }

    @property
    def pixel_format(self) -> str:
        """Of the encoded samples."""
        return self.codec.pixel_format(self.film.depth)

    def configure(self, context: Any) -> None:
        """Set up an encoder's context: for a segment, or for the stream that segments are joined in."""
        context.width, context.height, context.pix_fmt = self.width, self.height, self.pixel_format
        context.time_base = self.film.time_base
        context.framerate = self.film.rate or UNKNOWN_RATE
        context.sample_aspect_ratio = self.film.sample_aspect
        context.color_range, context.colorspace = self.colour.range, self.colour.matrix
        context.color_primaries, context.color_trc = self.colour.primaries, self.colour.transfer
        context.thread_count, context.thread_type = self.threads, "AUTO"
        context.flags |= int(Flags.global_header)  # parameter sets stand in the container, once
        context.options = self.options

    def opened(self) -> Any:
        """A fresh encoder. Raises InputError, with the encoder's own words, where it does not take this."""
        if min(self.height, self.width) < self.codec.min_side:
            raise InputError(
                f"{self.codec.name} takes pictures from {self.codec.min_side} pixels a side on, not "
                f"{self.width}x{self.height}",
                hint="--video-codec h264 or ffv1 takes smaller ones",
            )
        context = av.CodecContext.create(self.codec.encoder, "w")
        self.configure(context)
        try:
            with av.logging.Capture() as logs:
                context.open()
        except (av.FFmpegError, ValueError) as exc:
            said = "; ".join(message.strip() for level, _, message in logs if level <= av.logging.ERROR)
            raise InputError(
                f"{self.codec.name} does not take {self.width}x{self.height} in {self.pixel_format}: "
                f"{said or reason(exc)}",
                hint="--video-codec ffv1 takes any size; hardware encoders need their hardware",
            ) from exc
        return context


class SegmentEncoder:
    """Encodes the frames of one segment into its file. ``finish`` flushes; the object is of no use after it."""

    def __init__(self, encoding: Encoding, writer: SegmentWriter) -> None:
        self.writer = writer
        self.context = encoding.opened()
        self.extradata: bytes | None = self.context.extradata
        self._from_rgb = FromRGB(encoding.colour, encoding.pixel_format)
        self._time_base = encoding.film.time_base
        self._frame: av.VideoFrame | None = None
        self._durations: dict[int, int] = {}
        self.frames = 0

    def add(self, pixels: Pixels | None, *, pts: int, duration: int) -> None:
        """The next frame, (H, W, 3) uint8 or float32; None repeats the one before."""
        if pixels is not None:
            self._frame = self._from_rgb(pixels)
        assert self._frame is not None, "a segment begins with a picture"
        self._frame.pts, self._frame.time_base = pts, self._time_base
        self._durations[pts] = duration
        self._take(self.context.encode(self._frame))
        self.frames += 1

    def finish(self) -> None:
        """Flush the encoder."""
        self._take(self.context.encode(None))

    def _take(self, packets: list[Any]) -> None:
        for packet in packets:
            if packet.time_base not in (None, self._time_base):
                raise AssertionError(f"{self.context.name} counts in {packet.time_base}, not in {self._time_base}")
            assert packet.pts is not None
            self.writer.add(
                bytes(packet), pts=packet.pts, duration=self._durations.pop(packet.pts), key=packet.is_keyframe
            )
