"""Inputs that are pictures already, and outputs that are wanted as pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from espan_deploy.pipeline.jobs import Input
from espan_deploy.pipeline.picture import Picture, Pixels, to_channels


class PictureInput:
    """A picture at hand."""

    def __init__(self, name: str, picture: Picture) -> None:
        self.name = name
        self._picture = picture

    def sha256(self) -> str:
        """Of its pixels and what they mean."""
        digest = hashlib.sha256()
        for plane in (self._picture.color, self._picture.alpha):
            if plane is not None:
                digest.update(f"{plane.shape} {plane.dtype}".encode())
                digest.update(plane.tobytes())
        return digest.hexdigest()

    def size(self) -> tuple[int, int]:
        """Of the picture."""
        return self._picture.height, self._picture.width

    def picture(self) -> Picture:
        """Itself."""
        return self._picture


class PixelOutput:
    """Gives the whole result to whoever waits for it.

    deliver: called once, in a thread of the run, with (H, W) or (H, W, C) in the picture's own channels: uint8, or
    float32 where its depth is 16, as the network gave it and so possibly a little outside [0, 1].
    """

    def __init__(self, name: str, deliver: Callable[[Pixels], None]) -> None:
        self.name = name
        self._deliver = deliver
        self._sink: PixelSink | None = None

    def is_done(self, source: Input) -> bool:
        """Never: nothing is kept."""
        return False

    def held_bytes(self, height: int, width: int) -> int:
        """Four channels of float32, the most there may be."""
        return height * width * 16

    def open(self, picture: Picture, scale: int) -> PixelSink:
        """Memory for the result."""
        self._sink = PixelSink(picture, scale)
        return self._sink

    def settle(self) -> None:
        """Nothing to move on."""

    def publish(self) -> int:
        """Hand the pixels over."""
        assert self._sink is not None
        pixels, self._sink = self._sink.pixels, None
        self._deliver(pixels)
        return pixels.nbytes

    def discard(self) -> None:
        """Let go of the memory."""
        self._sink = None


class PixelSink:
    """Bands put together, in ``pixels``."""

    def __init__(self, picture: Picture, scale: int) -> None:
        self._picture = picture
        shape = (picture.height * scale, picture.width * scale)
        channels = () if picture.channels == 1 else (picture.channels,)
        self.pixels: Pixels = np.empty(shape + channels, picture.color.dtype)
        self._top = 0

    def prepare(self, color: Pixels, alpha: Pixels | None) -> Iterable[Pixels]:
        """The band in the picture's channels."""
        return [to_channels(color, alpha, self._picture)]

    def commit(self, part: Pixels) -> None:
        """Copy the rows: the band's memory is used again."""
        self.pixels[self._top : self._top + len(part)] = part
        self._top += len(part)

    def finish(self) -> None:
        """Nothing is left."""
