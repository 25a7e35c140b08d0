"""Films on the command line: what is printed where, and the exit codes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from synthetic import save_synthetic

pytest.importorskip("av", reason="PyAV, of the extra 'video', is not installed")

from video.films import Recipe, film

from espan_deploy.cli.main import main
from espan_deploy.video import upscale

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    film(path, Recipe(times=tuple(range(0, 240, 40)), time_base=Fraction(1, 1000), sound=True))
    return path


@pytest.fixture
def invoke(tmp_path: Path) -> Invoke:
    model = save_synthetic(tmp_path / "tiny.onnx")

    def run(source: Path, output: str, *options: str) -> Result:
        engine = ("--model", str(model), "--engine", "onnxruntime", "--precision", "fp32")
        return CliRunner().invoke(main, ["upscale", str(source), output, *engine, *options])

    return run


def test_a_film_is_written_and_said(source: Path, invoke: Invoke, tmp_path: Path) -> None:
    done = invoke(source, str(tmp_path / "out"), "--video-codec", "h264", "--crf", "30", "--preset", "fast")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "film.mkv").is_file()
    assert "film.mkv: 6 frames, 0 repeated" in done.stdout
    assert "frames/s (decode" in done.stdout
    assert "colours: BT.709, limited range" in done.stderr


def test_json_has_the_frames_and_rates_of_every_stage(source: Path, invoke: Invoke, tmp_path: Path) -> None:
    done = invoke(source, str(tmp_path / "out"), "--json", "--start", "0:00.08")
    (row,) = json.loads(done.stdout)["files"]
    assert (row["frames"], row["repeated"]) == (4, 0)
    assert set(row["stage_frames_per_second"]) == {"decode", "infer", "encode", "end_to_end"}


def test_a_dash_is_standard_output_and_the_report_is_talk(source: Path, invoke: Invoke) -> None:
    done = invoke(source, "-")
    assert done.exit_code == 0, done.stderr
    assert done.stdout_bytes.startswith(b"YUV4MPEG2 W256 H192")
    assert "6 frames" in done.stderr
    assert invoke(source, "-", "--json").exit_code == 2


def test_what_is_wrong_with_one_film_is_that_films_failure(source: Path, invoke: Invoke, tmp_path: Path) -> None:
    done = invoke(source, str(tmp_path / "out"), "--video-codec", "theora")
    assert done.exit_code == 4
    assert "failed: film.mkv: the video codec theora is not known" in done.stderr
    assert "hint: there are h264" in done.stderr


def test_a_damaged_film_is_said_by_the_exit_code(invoke: Invoke, tmp_path: Path) -> None:
    long = tmp_path / "long.mkv"
    film(long, Recipe(times=tuple(range(0, 4000, 40)), time_base=Fraction(1, 1000)))
    long.write_bytes(long.read_bytes()[: long.stat().st_size // 2])
    done = invoke(long, str(tmp_path / "out"))
    assert done.exit_code == 4
    assert "damaged: long.mkv: it ends at" in done.stderr


def test_a_preview_is_two_pictures(source: Path, invoke: Invoke, tmp_path: Path) -> None:
    assert invoke(source, str(tmp_path / "out"), "--preview").exit_code == 0
    assert sorted(path.suffixes[-2] for path in (tmp_path / "out").glob("*.png")) == [".after", ".before"]


def test_a_dry_run_touches_nothing(source: Path, invoke: Invoke, tmp_path: Path) -> None:
    done = invoke(source, str(tmp_path / "out"), "--dry-run")
    assert done.exit_code == 0
    assert "film.mkv  64x48, 7 frames" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("time", ["-1", "1:x", "nan", "inf"])
def test_times_are_checked(time: str, source: Path, invoke: Invoke, tmp_path: Path) -> None:
    done = invoke(source, str(tmp_path / "out"), "--start", time)
    assert done.exit_code == 2
    assert "1:30" in done.stderr


def test_without_pyav_the_extra_is_named(
    source: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str, *arguments: Any) -> Any:
        return None if name == "av" else importlib.util.find_spec(name, *arguments)

    monkeypatch.setattr(upscale, "find_spec", without)
    done = invoke(source, str(tmp_path / "out"))
    assert done.exit_code == 4
    assert "espan-deploy[video]" in done.stderr
