"""What a film is: its picture's size, depth, colour and clock, and the streams that are copied beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from espan_deploy.errors import InputError
from espan_deploy.video.colour import UNSPECIFIED, Colour, colour_of

ANALYZE = {"probesize": "50000000", "analyzeduration": "10000000"}
"""Bytes and microseconds that FFmpeg may read to know all streams: DVDs start their subtitles late."""

MAX_DEPTH = 12

INTERLACED_ORDERS = (2, 3, 4, 5)
"""FFmpeg's AV_FIELD_TT, BB, TB and BT."""

logging.getLogger("libav").setLevel(logging.CRITICAL)  # what FFmpeg finds odd is in the reports, as failures or notes


@dataclass(frozen=True)
class Film:
    """One film's facts.

    height, width: as shown, in pixels of the film, the rotation applied. rotation: degrees, counter-clockwise, that the
    decoded frames are turned by to be shown. time_base: seconds per unit of every time stamp. start: the first
    time stamp, as the container claims. rate: average frames
    per second, where it is known. frames: as the container claims, 0 where it does not. container:
    FFmpeg's name. end_seconds: when its last frame ends, as the container claims of this stream.
    sample_aspect: width of a pixel
    over its height, as shown.
    """

    path: Path
    height: int
    width: int
    depth: int
    rotation: int
    colour: Colour
    time_base: Fraction
    start: int
    rate: Fraction | None
    frames: int
    container: str
    end_seconds: float | None
    duration_seconds: float | None
    sample_aspect: Fraction
    codec: str
    has_alpha: bool
    interlaced: bool
    streams: int

    @property
    def deep(self) -> bool:
        """Whether it has more than 8 bits a sample."""
        return self.depth > 8

    @property
    def expected_frames(self) -> int:
        """As claimed, or as duration and rate make it; 0 where nothing is known."""
        if self.frames or not self.duration_seconds or not self.rate:
            return self.frames
        return round(self.duration_seconds * self.rate)


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """The container. Raises InputError where the file is none or cannot be read."""
    try:
        container = av.open(path, "r", container_options=ANALYZE, metadata_errors="replace")
    except (av.FFmpegError, OSError) as exc:
        raise InputError(f"{path.name} is no film that can be read: {reason(exc)}") from exc
    with container:
        yield container


def picture_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream that is the film: the best video stream that is no cover picture. Raises InputError for none."""
    candidates = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not candidates:
        raise InputError(f"{path.name} has no video stream")
    default = [s for s in candidates if s.disposition & av.stream.Disposition.default]
    return (default or candidates)[0]


def read_film(path: Path) -> Film:
    """Its facts, from the header and the first frame that decodes. Raises InputError where there is none."""
    with opened(path) as container:
        stream = picture_stream(container, path)
        if stream.codec_context is None:
            raise InputError(f"{path.name} is coded as {stream.codec_tag}, for which there is no decoder here")
        frame = _first_frame(container, stream, path)
        context, layout = stream.codec_context, frame.format
        depth = max(component.bits for component in layout.components)
        if depth > MAX_DEPTH:
            raise InputError(f"{path.name} has {depth} bits a sample; at most {MAX_DEPTH} are taken")
        rotation = frame.rotation % 360
        if rotation % 90:
            raise InputError(f"{path.name} is to be turned by {rotation} degrees; only quarter turns are taken")
        turned = rotation in (90, 270)
        colour = colour_of(
            matrix=_said(frame.colorspace, context.colorspace),
            full_range=_full_range(layout.name, frame.color_range or context.color_range),
            primaries=_said(frame.color_primaries, context.color_primaries),
            transfer=_said(frame.color_trc, context.color_trc),
            is_rgb=layout.is_rgb,
            height=frame.height,
            width=frame.width,
        )
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        if duration is None and container.duration is not None:
            duration = Fraction(container.duration, av.time_base)
        return Film(
            path,
            height=frame.width if turned else frame.height,
            width=frame.height if turned else frame.width,
            depth=depth,
            rotation=rotation,
            colour=colour,
            time_base=stream.time_base or Fraction(1, av.time_base),
            start=stream.start_time or 0,
            rate=stream.average_rate or stream.guessed_rate,
            frames=stream.frames,
            container=container.format.name,
            end_seconds=_end_seconds(stream),
            duration_seconds=None if duration is None else float(duration),
            sample_aspect=1 / aspect if turned else aspect,
            codec=context.name,
            has_alpha=any(component.is_alpha for component in layout.components),
            interlaced=frame.interlaced_frame or context.field_order in INTERLACED_ORDERS,
            streams=len(container.streams),
        )


def _end_seconds(stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    try:  # Matroska keeps it among the titles, and counts from zero
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (KeyError, ValueError):
        return None


def reason(exc: BaseException) -> str:
    """FFmpeg's words, without the path it repeats."""
    return str(getattr(exc, "strerror", None) or exc)


def _first_frame(container: InputContainer, stream: VideoStream, path: Path) -> av.VideoFrame:
    try:
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    return frame
            except av.FFmpegError:
                continue  # a damaged beginning; later frames may be whole
    except av.FFmpegError as exc:
        raise InputError(f"{path.name} cannot be read: {reason(exc)}") from exc
    raise InputError(f"no frame of {path.name} can be decoded")


def _said(*codes: int) -> int:
    """The first that is specified."""
    return next((int(code) for code in codes if int(code) != UNSPECIFIED), UNSPECIFIED)


def _full_range(pixel_format: str, code: int) -> bool | None:
    if pixel_format.startswith("yuvj"):
        return True
    return {1: False, 2: True}.get(int(code))
