"""Segments and the source's other streams into one film, without encoding anything again."""

from __future__ import annotations

import heapq
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import lcm
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, DataStream, Stream

from espan_deploy.errors import InputError
from espan_deploy.video.codecs import Encoding, VideoCodec
from espan_deploy.video.film import Film, opened, picture_stream, reason
from espan_deploy.video.segments import Segment, extradata_sha256, read_packets, read_segment

FORMATS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mts": "mpegts",
}
"""Containers that can be written, by ending."""

MOV_SUFFIXES = (".mp4", ".mov", ".m4v")
MOV_FAMILY = ("mp4", "mov")

EMPTY_CAPTION = b"\x00\x00"
"""A text of no length, as QuickTime has it."""

MAX_TIMESCALE = 2**31 - 1

OF_THE_SOURCE_ALONE = frozenset(
    {"encoder", "major_brand", "minor_version", "compatible_brands", "duration", "creation_time_base", "handler_name"}
)
OF_OTHER_BYTES = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS", "ENCODER", "SOURCE_ID")
"""Matroska's statistics of a stream, which are no longer true of the enlarged one."""


def container_suffix(suffix: str, codec: VideoCodec) -> str:
    """The film's own ending where its container holds the codec and can be written, else the nearest that does."""
    if suffix in codec.suffixes and suffix in FORMATS:
        return suffix
    family = MOV_SUFFIXES if suffix in MOV_SUFFIXES else ()  # Matroska would round its times to milliseconds
    return next((other for other in family if other in codec.suffixes), codec.suffixes[0])


@dataclass(frozen=True)
class Stretch:
    """The stretch of the film that is wanted, in its time base: ``start <= pts < end``, None for open."""

    start: int | None = None
    end: int | None = None

    def offset(self, film: Film) -> Fraction:
        """Seconds by which every time moves, so that a part begins at zero; the whole film's stay."""
        return Fraction(0) if self.start is None else self.start * film.time_base


def refused_streams(encoding: Encoding, suffix: str) -> dict[int, str]:
    """The streams, by index, that the container does not take beside the picture, and why: found by trying."""
    refused, film = {}, encoding.film
    with opened(film.path) as source:
        picture = picture_stream(source, film.path).index
        for stream in source.streams:
            if stream.index == picture or _is_chapter_track(stream):
                continue
            others = {other.index for other in source.streams} - {picture, stream.index}
            try:
                tried = _Joined(source, encoding, io.BytesIO(), suffix=suffix, stretch=Stretch(), without=others)
                tried.output.start_encoding()
            except (ValueError, av.FFmpegError) as exc:
                refused[stream.index] = f"stream {stream.index} ({stream.type}, {_codec_name(stream)}): {reason(exc)}"
    return refused


def _is_chapter_track(stream: Stream) -> bool:
    """QuickTime keeps chapters in a track of text too; they are copied as the chapters they are."""
    return isinstance(stream, DataStream) and stream.name == "bin_data" and bool(stream.container.chapters())


def _codec_name(stream: Stream) -> str:
    return str(getattr(stream.codec_context, "name", None) or stream.name or "unknown")


def join(
    encoding: Encoding,
    segments: list[Path],
    file: BinaryIO,
    *,
    suffix: str,
    stretch: Stretch,
    without: Collection[int] = (),
) -> None:
    """Write the film, without the streams of these indices.

    Raises InputError where the container refuses, and ValueError where segments do not fit.
    """
    film = encoding.film
    with opened(film.path) as source:
        joined = _Joined(source, encoding, file, suffix=suffix, stretch=stretch, without=without)
        with av.logging.Capture() as logs:
            try:
                joined.write(segments)
            except av.FFmpegError as exc:
                said = "; ".join(message.strip() for level, _, message in logs if level <= av.logging.ERROR)
                raise InputError(f"{film.path.name} cannot be joined to {suffix}: {said or reason(exc)}") from exc


class _Joined:
    def __init__(
        self,
        source: InputContainer,
        encoding: Encoding,
        file: Any,
        *,
        suffix: str,
        stretch: Stretch,
        without: Collection[int],
    ) -> None:
        self.source, self.film, self.encoding, self.stretch = source, encoding.film, encoding, stretch
        self.picture = picture_stream(source, self.film.path)
        self.without = without
        kind = FORMATS[suffix]
        self.output: OutputContainer = av.open(file, "w", format=kind, container_options=self._options(kind))
        self.streams: dict[int, Stream] = {}
        self.video = self._add_streams()
        self.output.metadata.update(_kept(source.metadata, OF_THE_SOURCE_ALONE))
        self.output.set_chapters(self._chapters())

    def _options(self, kind: str) -> dict[str, str]:
        options = {"fflags": "+bitexact"}  # the same film twice is the same bytes: no random identifiers
        if kind not in MOV_FAMILY:
            return options
        # Edit lists count in the movie's own clock: by default milliseconds, which round where streams begin.
        bases = [stream.time_base for stream in self.source.streams if stream.time_base]
        scale = lcm(*(base.denominator for base in bases)) if bases else 1000
        options["movie_timescale"] = str(scale if scale <= MAX_TIMESCALE else self.film.time_base.denominator)
        return options

    def _add_streams(self) -> Any:
        video = None
        for stream in self.source.streams:
            if stream is self.picture or stream.index == self.picture.index:
                video = self.output.add_stream(self.encoding.codec.encoder, options=self.encoding.options)
                self.encoding.configure(video.codec_context)
                video.time_base = self.film.time_base
                copy: Any = video
            elif stream.index in self.without or _is_chapter_track(stream):
                continue
            else:
                copy = self._copied(stream)
                self.streams[stream.index] = copy
            copy.metadata.update(_kept(stream.metadata, OF_THE_SOURCE_ALONE, copied=copy is not video))
            copy.disposition = stream.disposition
        assert video is not None
        return video

    def _copied(self, stream: Stream) -> Stream:
        if isinstance(stream, AttachmentStream):
            name = stream.metadata.get("filename", f"attachment-{stream.index}")
            return self.output.add_attachment(name, stream.mimetype or "application/octet-stream", stream.data)
        copy = self.output.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        return copy

    def _chapters(self) -> list[Any]:
        chapters, offset = [], self.stretch.offset(self.film)
        for chapter in self.source.chapters():
            base = chapter["time_base"] or Fraction(1, 1000)
            shift = int(offset / base)
            if chapter["end"] > shift:
                chapters.append({**chapter, "start": max(0, chapter["start"] - shift), "end": chapter["end"] - shift})
        return chapters

    def write(self, segments: list[Path]) -> None:
        self.output.start_encoding()
        parameters = extradata_sha256(self.video.codec_context.extradata)
        parts = [(path, read_segment(path)) for path in segments]
        for path, segment in parts:
            if segment.extradata_sha256 != parameters:
                raise ValueError(f"{path.name} was encoded with other parameters")
        # In the order of decoding times, so that the muxer need not hold one stream's packets for another's.
        for _, _, packet in heapq.merge(self._video(parts), self._others(), key=lambda item: item[:2]):
            self.output.mux_one(packet)
        self.output.close()

    def _video(self, parts: list[tuple[Path, Segment]]) -> Iterator[tuple[Fraction, int, Packet[Any]]]:
        times = [facts.pts for _, segment in parts for facts in segment.packets]
        decoding = decoding_times(times)
        shift = self.stretch.start or 0
        base = self.film.time_base
        index = 0
        for path, segment in parts:
            for facts, data in read_packets(path, segment):
                packet = Packet(data)
                packet.stream, packet.time_base = self.video, base
                packet.pts, packet.dts = facts.pts - shift, decoding[index] - shift
                packet.duration, packet.is_keyframe = facts.duration, facts.key
                yield packet.dts * base, 0, packet
                index += 1

    def _others(self) -> Iterator[tuple[Fraction, int, Packet[Any]]]:
        wanted = [self.source.streams[index] for index in self.streams]
        wanted = [stream for stream in wanted if not isinstance(stream, AttachmentStream)]
        if not wanted:
            return
        offset = self.stretch.offset(self.film)
        end = None if self.stretch.end is None else self.stretch.end * self.film.time_base
        last = Fraction(0)
        for packet in self.source.demux(*wanted):
            if packet.size == 0 or packet.time_base is None or self._is_made_by_the_muxer(packet):
                continue
            stamp = packet.dts if packet.dts is not None else packet.pts
            time = last if stamp is None else stamp * packet.time_base
            if stamp is not None and self.stretch.start is not None and time < offset:
                continue
            if end is not None and time >= end:
                continue
            last = time
            shift = int(offset / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            packet.stream = self.streams[packet.stream_index]
            yield time - offset, 1, packet

    def _is_made_by_the_muxer(self, packet: Packet[Any]) -> bool:
        """QuickTime's muxer ends a subtitle with an empty one of its own."""
        ends = packet.size == len(EMPTY_CAPTION) and bytes(packet) == EMPTY_CAPTION
        return ends and self.output.format.name in MOV_FAMILY and _codec_name(packet.stream) == "mov_text"


def decoding_times(pts: list[int]) -> list[int]:
    """Decoding times for packets in decoding order, of these presentation times.

    The presentation times in order, moved back by as many packets as the deepest reordering needs: they increase
    strictly, across segments too, and none is after its packet's presentation.
    """
    order = sorted(pts)
    place = {time: index for index, time in enumerate(order)}
    depth = max((index - place[time] for index, time in enumerate(pts)), default=0)
    step = max(1, min((b - a for a, b in pairwise(order)), default=1))
    before = [order[0] - step * (depth - index) for index in range(depth)] if order else []
    return (before + order)[: len(pts)]


def _kept(metadata: dict[str, str], left_out: frozenset[str], *, copied: bool = True) -> dict[str, str]:
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in left_out and (copied or not key.upper().startswith(OF_OTHER_BYTES))
    }
