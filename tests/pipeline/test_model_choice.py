"""Each file by the model that fits it: which is taken, and that a run of several never mixes or reopens them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import synthetic_description

from espan_deploy.backends.base import EngineInfo, Images, Runner
from espan_deploy.errors import EngineBuildError
from espan_deploy.pipeline import opened as opened_module
from espan_deploy.pipeline.choice import fitting_model, likely_model
from espan_deploy.pipeline.decode import EXTENSIONS
from espan_deploy.pipeline.encode import EncodeSettings
from espan_deploy.pipeline.encoded import Choose, FileSettings, file_jobs
from espan_deploy.pipeline.infer import Fallback, Lane
from espan_deploy.pipeline.jobs import Job, Taken
from espan_deploy.pipeline.names import outputs
from espan_deploy.pipeline.opened import UpscaleSettings
from espan_deploy.pipeline.origin import Origin
from espan_deploy.pipeline.plan import TilePolicy, fixed_batch
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.run import Run, RunSettings
from espan_deploy.pipeline.upscale import Upscaling
from espan_deploy.stores.folder import FolderDestination, FolderSource

LEVELS = {"clean": 50, "camera": 120, "photo": 200}
FILES = {"a.png": "clean", "b.jpg": "photo", "c.png": "clean", "d.jpg": "camera", "e.webp": "camera", "f.jpg": "photo"}
QUALITIES = {"b.jpg": 60, "d.jpg": 90, "e.webp": 80, "f.jpg": 40}


class LevelRunner(Runner):
    """Paints everything in one level, and counts its images."""

    def __init__(self, level: int) -> None:
        self.description = synthetic_description(halo=2)
        self.info = EngineInfo("level", "1", "CPU", "fp32")
        self.level, self.images = level, 0

    def _infer(self, images: Images) -> Images:
        self.images += len(images)
        height, width = images.shape[1:3]
        return np.full((len(images), 4 * height, 4 * width, 3), self.level, np.uint8)


def folder(path: Path) -> Path:
    path.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for name in FILES:
        Image.fromarray(pixels).save(path / name, quality=QUALITIES.get(name, 75))
    return path


def run(source: Path, output: Path, choose: Choose, lanes: list[Lane]) -> dict[str, FileReport]:
    reports: dict[str, FileReport] = {}

    def on_end(job: Job, report: FileReport, _: BaseException | None) -> None:
        reports[job.input.name] = report

    with FolderDestination(output) as destination:
        files = FileSettings("", EncodeSettings())
        found = FolderSource(source, EXTENSIONS)
        Run(
            file_jobs(found, outputs(found.entries(), "png"), destination, files, choose),
            lanes=lanes,
            settings=RunSettings(tiles=TilePolicy("auto", 1 << 20), batch=fixed_batch(4), decoders=2),
            on_end=on_end,
        ).execute()
    return reports


@pytest.mark.parametrize("lane_count", [1, 3])
def test_a_mixed_folder_goes_through_every_model_and_no_batch_mixes_them(tmp_path: Path, lane_count: int) -> None:
    runners = {name: [LevelRunner(level) for _ in range(lane_count)] for name, level in LEVELS.items()}
    lanes = {name: [Lane(runner, Fallback(None)) for runner in row] for name, row in runners.items()}

    def choose(origin: Origin) -> tuple[Taken, str]:
        fitting = fitting_model(origin)
        return Taken(fitting.model, fitting.because, lanes[fitting.model]), f"settings of {fitting.model}"

    source, output = folder(tmp_path / "in"), tmp_path / "out"
    reports = run(source, output, choose, lanes["clean"])
    assert {name: report.model for name, report in reports.items()} == FILES
    assert reports["b.jpg"].model_because == "JPEG of quality 60"
    for name, model in FILES.items():
        result = np.asarray(Image.open(output / reports[name].output))
        assert (result == LEVELS[model]).all(), name
    assert {name: sum(runner.images for runner in row) for name, row in runners.items()} == dict.fromkeys(LEVELS, 2)
    assert {report.status for report in run(source, output, choose, lanes["clean"]).values()} == {"skipped"}


def test_another_model_for_a_file_makes_its_result_anew(tmp_path: Path) -> None:
    lanes = {name: [Lane(LevelRunner(level), Fallback(None))] for name, level in LEVELS.items()}

    def always(model: str) -> Choose:
        return lambda _: (Taken(model, "asked", lanes[model]), model)

    source, output = folder(tmp_path / "in"), tmp_path / "out"
    run(source, output, always("clean"), lanes["clean"])
    again = run(source, output, always("photo"), lanes["clean"])
    assert {report.status for report in again.values()} == {"done"}


@pytest.mark.parametrize(
    ("origin", "model"),
    [
        (Origin(True, "JPEG of quality 30", 30), "photo"),
        (Origin(True, "JPEG of quality 74", 74), "photo"),
        (Origin(True, "JPEG of quality 75", 75), "camera"),
        (Origin(True, "JPEG of quality 95", 95), "camera"),
        (Origin(True, "JPEG of quality 96", 96), "clean"),
        (Origin(True, "lossy WebP", newer=True), "camera"),
        (Origin(True, "JPEG"), "photo"),
        (Origin(True, "a film"), "photo"),
        (Origin(False, "PNG, lossless"), "clean"),
    ],
)
def test_which_model_fits(origin: Origin, model: str) -> None:
    fitting = fitting_model(origin)
    assert (fitting.model, fitting.because) == (model, origin.told_by)


@pytest.mark.parametrize(
    ("name", "model"),
    [("a.JPG", "camera"), ("x/b.heic", "camera"), ("c.png", "clean"), ("d.mkv", "photo"), ("", "clean")],
)
def test_what_to_open_first(name: str, model: str) -> None:
    assert likely_model(name) == model


@pytest.mark.parametrize(("quality", "first"), [(98, "clean"), (90, "camera"), (50, "photo")])
def test_a_folders_first_file_tells_what_to_open(tmp_path: Path, quality: int, first: str) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (12, 12)).save(tmp_path / "in" / "a.jpg", quality=quality)
    assert Upscaling(tmp_path / "in", tmp_path / "out", None, UpscaleSettings()).first == first
    (tmp_path / "in" / "a.jpg").write_bytes(b"broken")
    assert Upscaling(tmp_path / "in", tmp_path / "out", None, UpscaleSettings()).first == "camera", "as its name says"


class Engines:
    """Stands in for engines that open: counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: str = "") -> None:
        self.opened: list[str] = []
        real = opened_module.OpenEngine

        def opened(model: Any, *arguments: Any, **settings: Any) -> Any:
            self.opened.append(model.path.stem)
            if model.path.stem == fail:
                raise EngineBuildError("no room for it")
            return real(model, *arguments, **settings)

        monkeypatch.setattr(opened_module, "OpenEngine", opened)


def upscaled(source: Path, output: Path, model: Path | None = None) -> Any:
    settings = UpscaleSettings(engine="onnxruntime", precision="fp32", threads=1)
    return Upscaling(source, output, model, settings).run()


def only(*endings: str) -> Callable[[Path], None]:
    def keep(path: Path) -> None:
        for file in path.iterdir():
            if not file.name.endswith(endings):
                file.unlink()

    return keep


def test_upscale_opens_each_model_once_and_tells_which_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = Engines(monkeypatch)
    report = upscaled(folder(tmp_path / "in"), tmp_path / "out")
    assert engines.opened == ["clean", "photo", "camera"]
    assert report.taken == {"clean": 2, "photo": 2, "camera": 2}
    assert {file.input: file.model for file in report.files} == FILES
    assert set(report.to_dict()["models"]) == {"clean", "camera", "photo"}
    assert "model: " in report.summary()


@pytest.mark.parametrize(
    ("endings", "model"), [(("b.jpg", "f.jpg"), "photo"), (("d.jpg", ".webp"), "camera"), ((".png",), "clean")]
)
def test_a_model_that_no_file_needs_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endings: tuple[str, ...], model: str
) -> None:
    engines = Engines(monkeypatch)
    source = folder(tmp_path / "in")
    only(*endings)(source)
    report = upscaled(source, tmp_path / "out")
    assert engines.opened == [model]
    assert report.taken == {model: 2}


def test_a_named_model_is_taken_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from espan_deploy.models import model_file

    engines = Engines(monkeypatch)
    report = upscaled(folder(tmp_path / "in"), tmp_path / "out", model_file("photo"))
    assert engines.opened == ["photo"]
    assert report.taken == {}
    assert {file.status for file in report.files} == {"done"}


def test_where_a_later_model_cannot_be_opened_its_files_fail_and_the_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Engines(monkeypatch, fail="photo")
    report = upscaled(folder(tmp_path / "in"), tmp_path / "out")
    for file in report.files:
        assert file.status == ("failed" if FILES[file.input] == "photo" else "done")
        assert file.error == ("" if file.status == "done" else "no room for it")


def test_a_dry_run_tells_the_model_and_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines(monkeypatch)
    report = Upscaling(folder(tmp_path / "in"), tmp_path / "out", None, UpscaleSettings()).plan()
    assert {file.input: file.model for file in report.files} == FILES
    assert engines.opened == []


def test_a_file_that_is_no_picture_fails_alone(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    (source / "broken.jpg").write_bytes(io.BytesIO(b"nothing").getvalue())
    report = upscaled(source, tmp_path / "out")
    assert [file.input for file in report.files if file.status == "failed"] == ["broken.jpg"]
