"""Results in order to a pipe, uncompressed (YUV4MPEG2), for another program to encode."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, BinaryIO

import av

from espan_deploy.errors import InputError
from espan_deploy.pipeline.picture import Pixels
from espan_deploy.video.codecs import UNKNOWN_RATE, Encoding, VideoCodec
from espan_deploy.video.colour import FromRGB
from espan_deploy.video.frames import Damage, FilmFrame
from espan_deploy.video.join import Stretch

Y4M = VideoCodec(
    "y4m", "rawvideo", {8: "yuv420p", 10: "yuv420p10le", 12: "yuv420p12le"}, (".y4m",), None, options={"strict": "-1"}
)

UNOFFICIAL = {"strict": "-1"}
"""More than 8 bits are an extension of the format that mpv and FFmpeg read."""


class PipedFilm:
    """Frames as they come, one for one: the format has one rate, and nothing beside the picture. For one thread."""

    complete = False
    size = 0

    def __init__(self, encoding: Encoding, file: BinaryIO, stretch: Stretch) -> None:
        self.start, self.end = stretch.start, stretch.end
        self.frames = self.computed = 0
        self.damage = Damage()
        # The format's clock ticks once a frame.
        rate = encoding.film.rate or UNKNOWN_RATE
        encoding = replace(encoding, film=replace(encoding.film, time_base=1 / Fraction(rate)))
        self._tick = encoding.film.time_base
        self._from_rgb = FromRGB(encoding.colour, encoding.pixel_format)
        self._output: Any = av.open(file, "w", format="yuv4mpegpipe", container_options=UNOFFICIAL)
        stream: Any = self._output.add_stream(Y4M.encoder, options=dict(UNOFFICIAL))
        encoding.configure(stream.codec_context)
        stream.time_base, stream.sample_aspect_ratio = self._tick, encoding.film.sample_aspect
        self._stream = stream
        self._frame: av.VideoFrame | None = None

    def ends_before(self, frame: FilmFrame) -> bool:
        """Never: there is one piece."""
        del frame
        return False

    def add(self, frame: FilmFrame, pixels: Pixels, *, repeats: bool) -> None:
        """The next frame's result. Raises InputError where nobody reads any more."""
        if self._frame is None or not repeats:
            self._frame = self._from_rgb(pixels)
        self._frame.pts, self._frame.time_base = self.frames, self._tick
        self.frames += 1
        self.computed += frame.pixels is not None
        self.damage += frame.damage
        self._send(self._frame)

    def end_segment(self, next_pts: int | None, damage: Damage) -> None:
        """The end."""
        del next_pts
        self.damage += damage

    def finish(self) -> int:
        """Flush. Returns 0: no file was written."""
        self._send(None)
        self._output.close()
        return 0

    def abandon(self) -> None:
        """Nothing can be taken back."""

    def _send(self, frame: av.VideoFrame | None) -> None:
        try:
            self._output.mux(self._stream.encode(frame))
        except BrokenPipeError as exc:
            raise InputError("the program that reads the pipe has ended") from exc
