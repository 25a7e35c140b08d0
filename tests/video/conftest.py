"""A small network, and the two ways through the stages that are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import save_synthetic

pytest.importorskip("av", reason="PyAV, of the extra 'video', is not installed")

from enlarging import SETTINGS, Upscale

from espan_deploy.pipeline.opened import UpscaleSettings
from espan_deploy.pipeline.report import Report
from espan_deploy.pipeline.upscale import Upscaling
from espan_deploy.video.upscale import FilmSettings, FilmUpscaling


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_synthetic(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture
def upscale(model: Path) -> Upscale:
    """(source, output, **FilmSettings) -> Report."""

    def run(source: Path, output: Path, *, settings: UpscaleSettings = SETTINGS, **films: Any) -> Report:
        return FilmUpscaling(source, output, model, settings, FilmSettings(**films)).run()

    return run


@pytest.fixture
def upscale_pictures(model: Path) -> Callable[[Path, Path], Report]:
    """The image path: folder to folder."""
    return lambda source, output: Upscaling(source, output, model, SETTINGS).run()
