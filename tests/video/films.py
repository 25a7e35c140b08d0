"""Small films made on the spot: every clock, colour, depth and stream that people's films have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Pixels = NDArray[Any]

SAMPLE_RATE = 48_000


@dataclass(frozen=True)
class Recipe:
    """What a film is made of. times: presentation times in time_base; the rest as PyAV calls it."""

    times: Sequence[int] = tuple(range(0, 24 * 1001, 1001))
    time_base: Fraction = Fraction(1, 30_000)
    height: int = 48
    width: int = 64
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"crf": "4", "g": "8"})
    matrix: int = 1
    range: int = 1
    primaries: int = 1
    transfer: int = 1
    aspect: Fraction = Fraction(1)
    rotation: int = 0
    sound: bool = False
    subtitles: int = 0
    chapters: bool = False
    attachment: bytes = b""
    interlaced: bool = False
    picture: Callable[[int, int, int], Pixels] | None = None


def moving(index: int, height: int, width: int) -> Pixels:
    """(H, W, 3) uint8: a soft gradient with a bright square that wanders."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 3 + 40, columns * 2 + index, 200 - rows - columns], 2) % 256
    top, left = (3 * index) % (height - 8), (5 * index) % (width - 8)
    image[top : top + 8, left : left + 8] = (240, 230, 20)
    return image.astype(np.uint8)


def film(path: Path, recipe: Recipe = Recipe()) -> list[Pixels]:
    """Write the film. Returns the frames as they were given to the encoder, RGB."""
    pictures = [(recipe.picture or moving)(index, recipe.height, recipe.width) for index in range(len(recipe.times))]
    kind = {"movie_timescale": "240000"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", container_options=kind) as out:
        out.metadata["title"] = "a small film"
        video: Any = out.add_stream(recipe.codec, options=recipe.options)
        video.width, video.height, video.pix_fmt = recipe.width, recipe.height, recipe.pixel_format
        video.time_base = video.codec_context.time_base = recipe.time_base
        video.codec_context.framerate = Fraction(30)
        video.codec_context.sample_aspect_ratio = recipe.aspect
        video.codec_context.colorspace, video.codec_context.color_range = recipe.matrix, recipe.range
        video.codec_context.color_primaries, video.codec_context.color_trc = recipe.primaries, recipe.transfer
        if recipe.rotation:
            video.set_display_rotation(recipe.rotation)
        sound = _add_sound(out) if recipe.sound else None
        captions = [_add_captions(out, path, language) for language in ("eng", "deu")[: recipe.subtitles]]
        if recipe.attachment:
            out.add_attachment("font.ttf", "font/ttf", recipe.attachment)
        if recipe.chapters:
            out.set_chapters(_chapters(recipe))
        reformatter = VideoReformatter()
        for time, pixels in zip(recipe.times, pictures, strict=True):
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(pixels, format="rgb24"),
                format=recipe.pixel_format,
                dst_colorspace=recipe.matrix if recipe.matrix in (1, 5, 9) else 1,
                src_color_range=2,
                dst_color_range=recipe.range,
            )
            frame.pts, frame.time_base = time, recipe.time_base
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        seconds = float(recipe.times[-1] * recipe.time_base)
        if sound is not None:
            _write_sound(out, sound, seconds)
        for stream, text in zip(captions, ("hello", "hallo"), strict=False):
            _write_captions(out, stream, text, seconds, mp4=path.suffix == ".mp4")
    return pictures


def _add_sound(out: Any) -> Any:
    stream = out.add_stream("aac", rate=SAMPLE_RATE)
    stream.codec_context.layout = "mono"
    stream.metadata["language"] = "eng"
    return stream


def _write_sound(out: Any, stream: Any, seconds: float) -> None:
    for start in range(0, int(seconds * SAMPLE_RATE), 1024):
        wave = np.sin(np.arange(start, start + 1024) * 0.06, dtype=np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _add_captions(out: Any, path: Path, language: str) -> Any:
    stream = out.add_mux_stream("mov_text" if path.suffix == ".mp4" else "subrip")
    stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = language
    return stream


def _write_captions(out: Any, stream: Any, text: str, seconds: float, *, mp4: bool) -> None:
    for index in range(3):
        encoded = f"{text} {index}".encode()
        packet = Packet(len(encoded).to_bytes(2, "big") + encoded if mp4 else encoded)
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = int(1000 * seconds * index / 3)
        packet.duration = 100
        out.mux_one(packet)


def _chapters(recipe: Recipe) -> list[Any]:
    middle, end = int(recipe.times[-1] * recipe.time_base * 500), int(recipe.times[-1] * recipe.time_base * 1000)
    base = Fraction(1, 1000)
    return [
        {"id": 1, "start": 0, "end": middle, "time_base": base, "metadata": {"title": "one"}},
        {"id": 2, "start": middle, "end": end, "time_base": base, "metadata": {"title": "two"}},
    ]


def frames_of(path: Path, *, rgb: bool = False) -> list[tuple[int, Pixels]]:
    """(pts, pixels) of every frame: the decoded planes as they are, or RGB where that is what is stored."""
    with av.open(str(path)) as container:
        return [
            (frame.pts or 0, frame.to_ndarray(format="rgb24") if rgb else frame.to_ndarray())
            for frame in container.decode(video=0)
        ]


def packets_of(path: Path, kind: str) -> list[list[tuple[Fraction, bytes]]]:
    """Of every stream of a kind, its packets: time in seconds, and contents."""
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        found: dict[int, list[tuple[Fraction, bytes]]] = {stream.index: [] for stream in streams}
        if streams:
            for packet in container.demux(*streams):
                if packet.size and packet.pts is not None:
                    found[packet.stream_index].append((packet.pts * packet.time_base, bytes(packet)))
    return list(found.values())
