"""Whole films through the stages: every frame as the image path makes it, everything else as the source has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from enlarging import SETTINGS, Upscale
from films import Pixels, Recipe, film, frames_of, moving, packets_of
from PIL import Image

from espan_deploy.errors import EspanDeployError
from espan_deploy.pipeline.report import Report
from espan_deploy.video.film import read_film
from espan_deploy.video.frames import FrameReader
from espan_deploy.video.upscale import FilmSettings, FilmUpscaling, stretch_of

MILLISECOND = Fraction(1, 1000)
"""The clock of Matroska: times in it pass exactly."""

STEADY = tuple(range(0, 960, 40))
UNEVEN = (0, 33, 50, 133, 137, 300, 333, 400, 667, 683, 700, 1000)

LOSSLESS = {
    "steady": Recipe(times=STEADY),
    "uneven": Recipe(times=UNEVEN),
    "odd-size": Recipe(times=STEADY[:6], height=49, width=67, pixel_format="yuv444p"),
    "one-frame": Recipe(times=(0,)),
    "late-start": Recipe(times=tuple(time + 500 for time in STEADY[:6])),
    "bt601": Recipe(times=STEADY[:4], matrix=5, primaries=5, transfer=6),
    "bt2020": Recipe(times=STEADY[:4], matrix=9, primaries=9, transfer=14),
    "full-range": Recipe(times=STEADY[:4], range=2),
    "rgb": Recipe(times=STEADY[:4], codec="ffv1", pixel_format="bgr0", options={}),
}


def picture(path: Path) -> Pixels:
    with Image.open(path) as opened:
        return np.asarray(opened)


def outcome(report: Report) -> tuple[str, str]:
    (row,) = report.files
    return row.status, row.error


@pytest.mark.parametrize("name", LOSSLESS)
def test_frames_are_those_of_the_image_path_at_the_times_of_the_source(
    name: str, tmp_path: Path, upscale: Upscale, upscale_pictures: Callable[[Path, Path], Report]
) -> None:
    source, pictures = tmp_path / "film.mkv", tmp_path / "pictures"
    film(source, replace(LOSSLESS[name], time_base=MILLISECOND))
    assert outcome(upscale(source, tmp_path / "out", codec="ffv1")) == ("done", "")
    facts = read_film(source)
    pictures.mkdir()
    times, shown = [], None
    for frame in FrameReader(facts):
        times.append(frame.pts)
        shown = shown if frame.pixels is None else frame.pixels
        Image.fromarray(shown).save(pictures / f"{frame.pts:06}.png")
    upscale_pictures(pictures, tmp_path / "enlarged")
    made = frames_of(tmp_path / "out" / "film.mkv", rgb=True)
    assert [time for time, _ in made] == times
    for time, pixels in made:
        assert np.array_equal(pixels, picture(tmp_path / "enlarged" / f"{time:06}.png")), time
    result = read_film(tmp_path / "out" / "film.mkv")
    assert (result.colour.primaries, result.colour.transfer) == (facts.colour.primaries, facts.colour.transfer)


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_subtitles_and_chapters_are_copied_and_no_time_moves(
    codec: str, suffix: str, tmp_path: Path, upscale: Upscale
) -> None:
    source = tmp_path / f"film{suffix}"
    font = b"a font" * 100 if suffix == ".mkv" else b""
    base = MILLISECOND if suffix == ".mkv" else Fraction(1, 30_000)
    times = UNEVEN if suffix == ".mkv" else tuple(time * 30 for time in UNEVEN)
    film(source, Recipe(times=times, time_base=base, sound=True, subtitles=2, chapters=True, attachment=font))
    assert outcome(upscale(source, tmp_path / "out", codec=codec)) == ("done", "")
    made = tmp_path / "out" / source.name
    assert times_of(made) == times_of(source)
    for kind in ("audio", "subtitle"):
        assert packets_of(made, kind) == packets_of(source, kind), kind
    with av.open(str(source)) as before, av.open(str(made)) as after:
        assert chapters_of(after) == chapters_of(before)
        assert after.metadata["title"] == before.metadata["title"]
        assert [s.type for s in after.streams] == [s.type for s in before.streams]
        assert [s.metadata.get("language") for s in after.streams] == [
            s.metadata.get("language") for s in before.streams
        ]
        fonts = [stream.data for stream in after.streams if stream.type == "attachment"]
        assert fonts == ([font] if font else [])


def times_of(path: Path) -> list[Fraction]:
    facts = read_film(path)
    return [frame.pts * facts.time_base for frame in FrameReader(facts)]


def chapters_of(container: av.container.InputContainer) -> list[tuple[Fraction, Fraction, str]]:
    return [
        (c["start"] * (c["time_base"] or 1), c["end"] * (c["time_base"] or 1), c["metadata"]["title"])
        for c in container.chapters()
    ]


@pytest.mark.parametrize(
    ("pixel_format", "codec", "expected"),
    [("yuv420p10le", "auto", "yuv420p10le"), ("yuv420p10le", "prores", "yuv422p10le"), ("yuv420p", "auto", "yuv420p")],
)
def test_depth_and_tags_are_kept(
    pixel_format: str, codec: str, expected: str, tmp_path: Path, upscale: Upscale
) -> None:
    source = tmp_path / "film.mkv"
    film(
        source,
        Recipe(times=STEADY[:5], time_base=MILLISECOND, pixel_format=pixel_format, matrix=9, primaries=9, transfer=16),
    )
    report = upscale(source, tmp_path / "out", codec=codec)
    assert outcome(report) == ("done", "")
    assert any("HDR (PQ)" in note for note in report.files[0].notes)
    with av.open(str(tmp_path / "out" / "film.mkv")) as made:
        context = made.streams.video[0].codec_context
        assert context.pix_fmt == expected
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (9, 9, 16, 1)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_pixels_stay_as_wide_as_they_are(codec: str, tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.mkv"
    film(source, Recipe(times=STEADY[:3], time_base=MILLISECOND, aspect=Fraction(16, 11)))
    assert outcome(upscale(source, tmp_path / "out", codec=codec)) == ("done", "")
    assert read_film(tmp_path / "out" / "film.mkv").sample_aspect == Fraction(16, 11)


def test_a_codec_that_cannot_say_how_wide_pixels_are_is_named(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.mkv"
    film(source, Recipe(times=STEADY[:3], time_base=MILLISECOND, aspect=Fraction(16, 11)))
    (row,) = upscale(source, tmp_path / "out", codec="ffv1").files
    assert any("16/11" in note for note in row.notes)


def test_ten_bits_go_through_the_float_path(tmp_path: Path, upscale: Upscale) -> None:
    """A ramp of 10 bits has more levels after than 8 bits could hold."""
    source = tmp_path / "film.mkv"
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64)
    film(
        source,
        Recipe(
            times=(0,),
            time_base=MILLISECOND,
            codec="ffv1",
            pixel_format="gbrp10le",
            options={},
            range=2,
            picture=lambda _i, _h, _w: ramp[..., None].repeat(3, 2).astype(np.uint8),
        ),
    )
    assert outcome(upscale(source, tmp_path / "out", codec="ffv1")) == ("done", "")
    with av.open(str(tmp_path / "out" / "film.mkv")) as made:
        frame = next(made.decode(video=0))
        assert frame.format.name == "gbrp10le"
        assert len(np.unique(frame.to_ndarray())) > 256


def test_a_film_that_is_to_be_turned_comes_out_upright(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.mov"
    given = film(source, Recipe(times=tuple(range(0, 4000, 1000)), rotation=90, codec="libx264", options={"crf": "1"}))
    report = upscale(source, tmp_path / "out")
    assert outcome(report) == ("done", "")
    made = read_film(tmp_path / "out" / "film.mov")
    assert (made.height, made.width, made.rotation) == (64 * 4, 48 * 4, 0)
    pixels = next(iter(FrameReader(made))).pixels
    assert pixels is not None
    small = pixels.reshape(64, 4, 48, 4, 3).mean((1, 3))
    distances = [np.abs(small - np.rot90(given[0], turn)).mean() for turn in (1, 3)]
    assert distances[0] < distances[1] / 2
    assert any("turned by 90" in note for note in report.files[0].notes)


def test_frames_that_repeat_the_one_before_are_not_computed(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.mkv"
    recipe = Recipe(times=STEADY[:12], time_base=MILLISECOND, codec="ffv1", pixel_format="bgr0", options={})
    film(source, replace(recipe, picture=lambda index, height, width: moving(index // 4, height, width)))
    report = upscale(source, tmp_path / "out", codec="ffv1")
    assert outcome(report) == ("done", "")
    assert (report.files[0].frames, report.files[0].repeated) == (12, 9)  # type: ignore[attr-defined]
    made = frames_of(tmp_path / "out" / "film.mkv", rgb=True)
    assert [time for time, _ in made] == list(STEADY[:12])
    assert np.array_equal(made[0][1], made[3][1])
    assert not np.array_equal(made[3][1], made[4][1])


def test_a_damaged_middle_costs_what_is_damaged_and_is_reported(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.mkv"
    times = tuple(range(0, 4000, 40))
    film(source, Recipe(times=times, time_base=MILLISECOND, height=96, width=128))
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = bytes(1500)
    source.write_bytes(data)
    report = upscale(source, tmp_path / "out", codec="ffv1")
    status, error = outcome(report)
    assert status == "damaged"
    assert "could not be decoded" in error or "damaged" in error
    made = [time for time, _ in frames_of(tmp_path / "out" / "film.mkv", rgb=True)]
    assert set(made) <= set(times)
    assert len(times) * 0.8 < len(made) <= len(times)
    assert made[-1] == times[-1]


def inside_a_frame(path: Path) -> int:
    """Where to cut: half way through the middle key frame. Between frames, a transport stream does not show a cut."""
    with av.open(str(path)) as opened:
        packets = [packet for packet in opened.demux(video=0) if packet.size and packet.is_keyframe]
    middle = packets[len(packets) // 2]
    assert middle.pos is not None
    return middle.pos + middle.size // 2


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_a_film_that_was_cut_off_keeps_what_there_is(suffix: str, tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / f"film{suffix}"
    base = MILLISECOND if suffix == ".mkv" else Fraction(1, 90_000)
    film(source, Recipe(times=tuple(int(i / 25 / base) for i in range(100)), time_base=base, height=96, width=128))
    source.write_bytes(source.read_bytes()[: inside_a_frame(source)])
    status, error = outcome(upscale(source, tmp_path / "out"))
    assert status == "damaged", error
    assert 30 < len(frames_of(tmp_path / "out" / source.name)) < 70


def test_avi_which_knows_no_presentation_times_keeps_the_order(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.avi"
    film(source, Recipe(times=tuple(range(20)), time_base=Fraction(1, 25)))
    assert outcome(upscale(source, tmp_path / "out", codec="ffv1")) == ("done", "")
    made = frames_of(tmp_path / "out" / "film.mkv", rgb=True)
    assert [time for time, _ in made] == [40 * index for index in range(20)]


def test_interlaced_films_are_woven_one_for_one(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.mkv"
    options = {"crf": "4", "flags": "+ilme+ildct", "x264-params": "tff=1"}
    film(source, Recipe(times=STEADY, time_base=MILLISECOND, options=options))
    report = upscale(source, tmp_path / "out")
    assert outcome(report) == ("done", "")
    assert any("interlaced" in note for note in report.files[0].notes)
    made = read_film(tmp_path / "out" / "film.mkv")
    assert not made.interlaced
    assert [frame.pts for frame in FrameReader(made)] == list(STEADY)


def test_a_stretch_begins_at_zero(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.mkv"
    film(source, Recipe(times=STEADY, time_base=MILLISECOND, sound=True, subtitles=1, chapters=True))
    assert outcome(upscale(source, tmp_path / "out", codec="ffv1", start=0.2, end=0.6)) == ("done", "")
    made = frames_of(tmp_path / "out" / "film.mkv", rgb=True)
    assert [time for time, _ in made] == [time - 200 for time in STEADY if 200 <= time < 600]
    (sound,) = packets_of(tmp_path / "out" / "film.mkv", "audio")
    assert 0 <= sound[0][0] < 0.05
    assert 0.3 < sound[-1][0] < 0.4


def test_a_preview_is_one_frame_before_and_after(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.mkv"
    film(source, Recipe(times=STEADY, time_base=MILLISECOND))
    upscale(source, tmp_path / "out", preview=True, start=0.4)
    before, after = picture(tmp_path / "out" / "film.mkv.before.png"), picture(tmp_path / "out" / "film.mkv.after.png")
    wanted = next(frame for frame in FrameReader(read_film(source)) if frame.pts == 400)
    assert np.array_equal(before, wanted.pixels)
    assert after.shape == (48 * 4, 64 * 4, 3)
    assert not (tmp_path / "out" / "film.mkv").exists()


def test_folders_mix_pictures_and_films(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    pictures = film(source / "deep" / "film.mp4", Recipe(times=tuple(range(0, 3000, 1000))))
    Image.fromarray(pictures[0]).save(source / "picture.png")
    (source / "broken.mkv").write_bytes(b"no film")
    report = upscale(source, tmp_path / "out")
    rows = {row.input: row for row in report.files}
    assert {name: row.status for name, row in rows.items()} == {
        "deep/film.mp4": "done",
        "picture.png": "done",
        "broken.mkv": "failed",
    }
    assert "no film that can be read" in rows["broken.mkv"].error
    assert {row.status for row in upscale(source, tmp_path / "out").files} == {"skipped", "failed"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codec": "h263"}, "there are h264"),
        ({"codec": "hevc_nvenc"}, ""),
        ({"start": 3.0, "end": 2.0}, "there is nothing"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    settings: dict[str, object], message: str, tmp_path: Path, upscale: Upscale
) -> None:
    source = tmp_path / "film.mkv"
    film(source, Recipe(times=STEADY[:3], time_base=MILLISECOND))
    (row,) = upscale(source, tmp_path / "out", **settings).files
    assert row.status == "failed"
    assert message in f"{row.error} {row.hint}"
    assert not list((tmp_path / "out").glob("film*"))


def test_a_size_that_the_codec_cannot_hold_is_said_before_the_work(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "film.mkv"
    film(source, Recipe(times=(0,), time_base=MILLISECOND, height=16, width=8192, pixel_format="yuv420p"))
    (row,) = upscale(source, tmp_path / "out", codec="h264").files
    assert row.status == "failed"
    assert "32768x64" in row.error


def test_a_film_without_pictures_is_no_film(tmp_path: Path, upscale: Upscale) -> None:
    source = tmp_path / "sound.mp4"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        stream.codec_context.layout = "mono"
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    (row,) = upscale(source, tmp_path / "out").files
    assert (row.status, row.error) == ("failed", "sound.mp4 has no video stream")


def test_what_somebody_else_made_is_not_replaced(tmp_path: Path, upscale: Upscale) -> None:
    source, made = tmp_path / "film.mkv", tmp_path / "out" / "film.mkv"
    film(source, Recipe(times=STEADY[:3], time_base=MILLISECOND))
    made.parent.mkdir()
    made.write_bytes(b"mine")
    (row,) = upscale(source, tmp_path / "out").files
    assert row.status == "failed"
    assert "--overwrite" in row.hint
    assert made.read_bytes() == b"mine"


def test_a_pipe_gets_every_frame_uncompressed(tmp_path: Path, model: Path) -> None:
    source, piped = tmp_path / "film.mkv", tmp_path / "piped.y4m"
    film(source, Recipe(times=STEADY[:5], time_base=MILLISECOND))
    with piped.open("wb") as pipe:
        report = FilmUpscaling(source, "-", model, SETTINGS, FilmSettings(), pipe=pipe).run()
    assert outcome(report) == ("done", "")
    assert piped.read_bytes().startswith(b"YUV4MPEG2 W256 H192")
    assert len(frames_of(piped)) == 5


def test_stretches_are_exact_time_stamps(tmp_path: Path) -> None:
    source = tmp_path / "film.mp4"
    film(source, Recipe(times=tuple(range(0, 9000, 1000))))
    facts = read_film(source)
    assert stretch_of(facts, FilmSettings(start=0.1, end=0.2)).start == 3000
    assert stretch_of(facts, FilmSettings(start=0.10001)).start == 3001  # the first that is not before
    with pytest.raises(EspanDeployError, match="nothing"):
        stretch_of(facts, FilmSettings(start=1, end=1))
