"""Runs that are cut short, roughly or not, and the same command again."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from enlarging import SETTINGS, Upscale
from films import Recipe, film, moving

from espan_deploy.stores import HIDDEN_PREFIX
from espan_deploy.video import writer
from espan_deploy.video.codecs import SegmentEncoder
from espan_deploy.video.film import read_film
from espan_deploy.video.frames import FrameReader
from espan_deploy.video.segments import read_segment
from espan_deploy.video.upscale import FilmSettings, FilmUpscaling

FRAMES, KEY_EVERY = 400, 8

KILLS = 10

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    film(
        path, Recipe(times=tuple(range(0, FRAMES * 1001, 1001)), sound=True, options={"crf": "20", "g": str(KEY_EVERY)})
    )
    return path


@pytest.fixture(scope="module")
def uninterrupted(long_film: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("whole")
    FilmUpscaling(long_film, output, model, SETTINGS, FilmSettings()).run()
    return (output / "film.mp4").read_bytes()


def segments(output: Path) -> list[Path]:
    return sorted(output.glob(f"{HIDDEN_PREFIX}-film.mp4.segments/*"))


def test_twice_the_same_film_is_the_same_bytes(
    long_film: Path, uninterrupted: bytes, tmp_path: Path, upscale: Upscale
) -> None:
    upscale(long_film, tmp_path)
    assert (tmp_path / "film.mp4").read_bytes() == uninterrupted
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{HIDDEN_PREFIX}.jsonl", "film.mp4"]


def test_a_stopped_run_goes_on_where_it_was(
    long_film: Path, uninterrupted: bytes, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FilmUpscaling(long_film, tmp_path, model, SETTINGS, FilmSettings())
    stop_after(250, first, monkeypatch)
    report = first.run()
    assert report.interrupted
    assert [row.status for row in report.files] == ["not started"]
    done = [len(read_segment(path).packets) for path in segments(tmp_path)]
    assert len(done) == 2
    assert all(writer.LEAST_FRAMES <= count < writer.LEAST_FRAMES + KEY_EVERY for count in done)
    monkeypatch.undo()
    encoded = count_frames(monkeypatch)
    report = FilmUpscaling(long_film, tmp_path, model, SETTINGS, FilmSettings()).run()
    assert [row.status for row in report.files] == ["done"]
    assert len(encoded) == FRAMES - sum(done)
    assert report.files[0].frames == FRAMES  # type: ignore[attr-defined]
    assert (tmp_path / "film.mp4").read_bytes() == uninterrupted


def stop_after(count: int, upscaling: FilmUpscaling, monkeypatch: pytest.MonkeyPatch) -> None:
    add, seen = SegmentEncoder.add, []

    def counted(self: SegmentEncoder, *arguments: Any, **named: Any) -> None:
        add(self, *arguments, **named)
        seen.append(1)
        if len(seen) == count:
            upscaling.stop()

    monkeypatch.setattr(SegmentEncoder, "add", counted)


def count_frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    add, seen = SegmentEncoder.add, []

    def counted(self: SegmentEncoder, *arguments: Any, pts: int, **named: Any) -> None:
        seen.append(pts)
        add(self, *arguments, pts=pts, **named)

    monkeypatch.setattr(SegmentEncoder, "add", counted)
    return seen


def test_ten_kills_at_random_moments_and_the_film_is_whole(
    long_film: Path, uninterrupted: bytes, tmp_path: Path, model: Path
) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "upscale", str(long_film), str(tmp_path), "--model", str(model)]
    command += ["--engine", SETTINGS.engine, "--precision", SETTINGS.precision, "--threads", str(SETTINGS.threads)]
    moments = random.Random(18)
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(moments.uniform(0.3, 2.0))
            run.send_signal(signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "film.mp4").read_bytes() == uninterrupted
    assert segments(tmp_path) == []


def test_a_full_disk_leaves_what_is_whole(
    long_film: Path, uninterrupted: bytes, tmp_path: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = writer.SegmentWriter.add
    written: list[int] = []

    def full(self: writer.SegmentWriter, data: bytes, **named: Any) -> None:
        written.append(1)
        if len(written) > 150:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, data, **named)

    monkeypatch.setattr(writer.SegmentWriter, "add", full)
    (row,) = upscale(long_film, tmp_path).files
    assert (row.status, row.error) == ("failed", "No space left on device")
    assert len(segments(tmp_path)) == 1
    assert not (tmp_path / "film.mp4").exists()
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    assert [row.status for row in upscale(long_film, tmp_path).files] == ["done"]
    assert (tmp_path / "film.mp4").read_bytes() == uninterrupted


def test_other_settings_do_not_use_old_segments(
    long_film: Path, tmp_path: Path, model: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FilmUpscaling(long_film, tmp_path, model, SETTINGS, FilmSettings(crf=30))
    stop_after(150, first, monkeypatch)
    first.run()
    monkeypatch.undo()
    encoded = count_frames(monkeypatch)
    (row,) = upscale(long_film, tmp_path, crf=10).files
    assert row.status == "done"
    assert len(encoded) == FRAMES
    assert segments(tmp_path) == []


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("key_every", [8, 1000])
def test_reading_may_begin_anywhere(interlaced: bool, key_every: int, tmp_path: Path) -> None:
    """Also where the only keyframe is the first, and where a deinterlacer needs the frame before."""
    path = tmp_path / "film.mkv"
    options = {"crf": "10", "g": str(key_every)} | ({"flags": "+ilme+ildct"} if interlaced else {})
    film(path, Recipe(times=tuple(range(0, 40 * 33, 33)), options=options, picture=moving))
    facts = read_film(path)
    assert facts.interlaced is interlaced
    frames = list(FrameReader(facts))
    for index in (0, 1, 8, 21, 39):
        part = list(FrameReader(facts, start=frames[index].pts))
        assert [frame.pts for frame in part] == [frame.pts for frame in frames[index:]]
        for one, other in zip(part, frames[index:], strict=True):
            assert one.pixels is not None
            assert other.pixels is not None
            assert (one.pixels == other.pixels).all(), (index, one.pts)
