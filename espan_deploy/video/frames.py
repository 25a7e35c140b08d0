"""The frames of a film in order, upright and in RGB, from any time stamp on; what cannot be decoded is counted."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.video.stream import VideoStream

from espan_deploy.errors import InputError
from espan_deploy.video.colour import Pixels, ToRGB
from espan_deploy.video.film import Film, opened, picture_stream, reason

AVI = "avi"

MISSING_SECONDS = 0.5
"""By which a film may end before its container says so: the last frame's own duration, and rounding."""


@dataclass(frozen=True)
class Damage:
    """What could not be read.

    packets: that could not be decoded. concealed: frames whose damage the decoder painted over; they are kept.
    misplaced: frames left out because their time is not after the frame's before. ended: why reading ended early.
    """

    packets: int = 0
    concealed: int = 0
    misplaced: int = 0
    ended: str = ""

    def __add__(self, other: Damage) -> Damage:
        return Damage(
            self.packets + other.packets,
            self.concealed + other.concealed,
            self.misplaced + other.misplaced,
            self.ended or other.ended,
        )

    def __bool__(self) -> bool:
        """Whether anything was lost."""
        return self != Damage()

    def __str__(self) -> str:
        """What was lost, as people say it."""
        counts = (
            (self.packets, "packet(s) could not be decoded"),
            (self.concealed, "frame(s) are damaged and were kept as the decoder mended them"),
            (self.misplaced, "frame(s) were out of order and left out"),
        )
        parts = [f"{count} {what}" for count, what in counts if count]
        return "; ".join(parts + ([self.ended] if self.ended else []))


@dataclass(frozen=True)
class FilmFrame:
    """One frame. pts, duration: in the film's time base, duration 0 where it is not known.

    key: whether decoding can begin here. pixels: (H, W, 3) as :class:`ToRGB` gives them, or None where every sample is
    that of the frame before. damage: since the frame before, its own included.
    """

    pts: int
    duration: int
    key: bool
    pixels: Pixels | None
    damage: Damage = Damage()


class FrameReader:
    """Iterates over the frames of a film with ``start <= pts < end``; then ``damage`` says what followed the last.

    start, end: in the film's time base; None for all. threads: for decoding. Raises InputError while iterating where
    the film's picture changes its size.
    """

    def __init__(self, film: Film, *, start: int | None = None, end: int | None = None, threads: int = 1) -> None:
        self.film, self.start, self.end, self.threads = film, start, end, threads
        self.damage = Damage()
        self._to_rgb = ToRGB(film.colour, depth=film.depth)
        self._before: list[Pixels] = []

    def __iter__(self) -> Iterator[FilmFrame]:
        last: int | None = None
        for frame in self._from_start():
            pts = frame.pts if frame.pts is not None else frame.dts
            if pts is None or (last is not None and pts <= last):
                self.damage += Damage(misplaced=1)
                continue
            last = pts
            if self.start is not None and pts < self.start:
                self.damage = Damage()  # before what is wanted
                continue
            if self.end is not None and pts >= self.end:
                return
            damage, self.damage = self.damage + Damage(concealed=int(frame.is_corrupt)), Damage()
            yield FilmFrame(pts, frame.duration or 0, frame.key_frame, self._pixels(frame), damage)
        if last is not None and self.end is None:
            self.damage += self._missing_end(last)

    def _missing_end(self, last: int) -> Damage:
        """What a file that was cut off does not say by itself."""
        promised, read = self.film.end_seconds, float(last * self.film.time_base)
        if promised is None or read >= promised - MISSING_SECONDS or self.damage.ended:
            return Damage()
        return Damage(ended=f"it ends at {read:.2f} s, and promises {promised:.2f} s")

    def _pixels(self, frame: av.VideoFrame) -> Pixels | None:
        height, width = (frame.width, frame.height) if self.film.rotation % 180 else (frame.height, frame.width)
        if (height, width) != (self.film.height, self.film.width):
            raise InputError(
                f"the picture of {self.film.path.name} changes from {self.film.width}x{self.film.height} to "
                f"{width}x{height} within the film",
                hint="cut it there, and upscale the parts",
            )
        planes = _planes(frame)
        same = len(planes) == len(self._before) and all(map(np.array_equal, planes, self._before))
        # The decoder may use a frame's memory again, so what is compared with the next one is a copy.
        self._before = self._before if same else [plane.copy() for plane in planes]
        if same:
            return None
        pixels = self._to_rgb(frame)
        return np.ascontiguousarray(np.rot90(pixels, self.film.rotation // 90)) if self.film.rotation else pixels

    def _from_start(self) -> Generator[av.VideoFrame, None, None]:
        """Decoded frames from a point at or before the start on, whatever has to be read for that."""
        if self.start is not None and self.film.container != AVI:
            frames = self._decoded(seek_to=self.start - 1 if self.film.interlaced else self.start)
            first = next(frames, None)
            if first is not None and first.pts is not None and first.pts <= self.start:
                yield first
                yield from frames
                return
            frames.close()
            self.damage = Damage()
        # No index, or one that leads past the start: then everything before it is decoded too.
        yield from self._decoded(seek_to=None)

    def _decoded(self, seek_to: int | None) -> Generator[av.VideoFrame, None, None]:
        with opened(self.film.path) as container:
            stream = picture_stream(container, self.film.path)
            stream.thread_count, stream.thread_type = self.threads, "AUTO"
            if seek_to is not None:
                try:
                    container.seek(seek_to, stream=stream, backward=True)
                except av.FFmpegError:
                    return
            frames = self._frames(container, stream)
            if self.film.container == AVI:
                frames = _in_order(frames)
            yield from self._deinterlaced(stream, frames) if self.film.interlaced else frames

    def _frames(self, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as exc:
                self.damage += Damage(ended=f"reading ended early: {reason(exc)}")
                packet = None
            try:
                yield from stream.decode(packet) if packet is None or packet.size else ()
            except av.EOFError:
                return
            except av.FFmpegError:
                self.damage += Damage(packets=1)
            if packet is None:
                return

    def _deinterlaced(self, stream: VideoStream, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """Fields woven into frames, one for one and at their time; progressive ones pass."""
        graph = Graph()
        source = graph.add_buffer(template=stream)
        bwdif, sink = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"), graph.add("buffersink")
        graph.link_nodes(source, bwdif, sink).configure()
        for frame in chain(frames, (None,)):
            graph.vpush(frame)
            for woven in _pulled(graph):
                # The filter counts in half units, for it can make two frames of one.
                if woven.pts is not None and woven.time_base is not None:
                    woven.pts = round(woven.pts * woven.time_base / self.film.time_base)
                woven.duration //= 2
                yield woven


def _in_order(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """AVI knows no presentation times, and its decoding times are right but for a shift: frames come in order."""
    shift, last = None, -1
    for frame in frames:
        shift = frame.dts if shift is None else shift
        last = last + 1 if frame.dts is None or shift is None else max(last + 1, frame.dts - shift)
        frame.pts = last
        yield frame


def _pulled(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return


def _planes(frame: av.VideoFrame) -> list[Pixels]:
    """Views of the samples, as far as possible without what lines are padded with."""
    components = frame.format.components
    sample = 2 if max(component.bits for component in components) > 8 else 1
    views = []
    for index, plane in enumerate(frame.planes):
        rows: Pixels = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height]
        together = sum(component.plane == index for component in components)
        views.append(rows[:, : plane.width * together * sample])
    return views
