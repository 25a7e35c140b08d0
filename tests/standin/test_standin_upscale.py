"""Whole runs of the command through TensorRT's runner, real pycuda and the stand-in driver; and what may go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torture
from click.testing import CliRunner, Result
from PIL import Image

from espan_deploy.backends.finite import NonFiniteError, check_finite
from espan_deploy.cli.main import main

LEVELS = 2
"""FP16 and FP32 of two layers."""

SIZES = [(20, 14)] * 5 + [(31, 17), (9, 40), (64, 48), (20, 14)]
"""Width and height of the photographs: one that keeps coming, and others."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines are built once for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPAN_DEPLOY_CACHE", str(kept))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for index, (width, height) in enumerate(SIZES):
        Image.fromarray(torture.picture(width, height, seed=index)).save(folder / f"{index}.png")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def upscale(photos: Path, output: Path, model: Path, engine: str = "tensorrt", *more: object) -> tuple[Result, Any]:
    precision = "fp32" if engine == "onnxruntime" else "fp16"
    given = ("upscale", photos, output, "--model", model, "--engine", engine, "--precision", precision, "--json")
    result = call(*given, *more)
    return result, json.loads(result.stdout) if result.stdout else {}


def right(output: Path, photos: Path, model: Path, names: list[str] | None = None) -> bool:
    """Against ONNX Runtime in FP32."""
    reference = photos.parent / "reference"
    if not reference.exists():
        assert upscale(photos, reference, model, "onnxruntime")[0].exit_code == 0
    wanted = names or [path.name for path in photos.iterdir()]
    pairs = [(np.asarray(Image.open(folder / name)) for folder in (output, reference)) for name in wanted]
    return all(np.abs(ours.astype(int) - theirs).max() <= LEVELS for ours, theirs in pairs)


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_a_folder_of_mixed_sizes(driver: Any, photos: Path, model: Path, tmp_path: Path, engine: str) -> None:
    result, report = upscale(photos, tmp_path / "out", model, engine)
    assert result.exit_code == 0, result.output
    assert report["engine"]["backend"] == engine
    assert report["engine"]["device"] == "Stand-in card (8.6)"
    assert right(tmp_path / "out", photos, model)
    assert not any(driver.held().values())
    assert driver.count("stream that waits for the default one") == 0


def test_tiles_go_straight_into_their_image(driver: Any, photos: Path, model: Path, tmp_path: Path) -> None:
    result, report = upscale(photos, tmp_path / "out", model, "tensorrt", "--tile", 16)
    assert result.exit_code == 0, result.output
    assert sum(file["tiles"] for file in report["files"]) > 2 * len(SIZES)
    assert right(tmp_path / "out", photos, model)


def test_sixteen_bits_take_an_engine_of_their_own(driver: Any, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    deep = torture.picture(20, 14)[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(torture.picture(20, 14)).save(folder / "plain.png")
    result, _ = upscale(folder, tmp_path / "out", model)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "deep.png") as image:
        assert image.mode == "I;16"
    assert not any(driver.held().values())


@pytest.mark.parametrize("after", range(0, 24, 2))
def test_memory_that_runs_out_anywhere_costs_no_image(
    driver: Any, photos: Path, model: Path, tmp_path: Path, after: int
) -> None:
    """The n-th allocation of the run fails, and the three after it: while opening that is the run's end."""
    driver.fail("cuMemAlloc_v2", after=after, times=4)
    result, report = upscale(photos, tmp_path / "out", model)
    if result.exit_code:
        assert result.exit_code == 1, result.output
        assert "out of memory" in result.output.lower() or "OutOfMemory" in result.output
        assert after < 6
    else:
        assert {file["status"] for file in report["files"]} == {"done"}
        assert right(tmp_path / "out", photos, model)
    assert not any(driver.held().values())


def test_a_failed_launch_costs_its_image_at_most(driver: Any, photos: Path, model: Path, tmp_path: Path) -> None:
    driver.fail("cuLaunchHostFunc", after=2, times=2, code=driver.LAUNCH_FAILED)
    result, report = upscale(photos, tmp_path / "out", model, "tensorrt", "--batch", 1)
    assert result.exit_code == 4, result.output
    failed = [file for file in report["files"] if file["status"] == "failed"]
    assert len(failed) == 2
    assert all("TensorRT failed to run: [runner.cpp]" in file["error"] for file in failed)
    done = [Path(file["output"]).name for file in report["files"] if file["status"] == "done"]
    assert right(tmp_path / "out", photos, model, done)
    assert not any(driver.held().values())


def test_a_device_that_is_lost_fails_the_rest_and_the_command_ends(
    driver: Any, photos: Path, model: Path, tmp_path: Path
) -> None:
    driver.fail("kernel", after=3, times=1, code=driver.LAUNCH_FAILED)
    result, report = upscale(photos, tmp_path / "out", model, "tensorrt", "--batch", 1)
    assert result.exit_code in (1, 4), result.output
    errors = [file["error"] for file in report["files"] if file["status"] == "failed"]
    assert errors
    assert all("unspecified launch failure" in error or "Cuda Driver (719)" in error for error in errors)
    driver.wipe()


@pytest.mark.parametrize("refused", [False, True])
def test_an_engine_file_with_graphs(driver: Any, model: Path, tmp_path: Path, refused: bool) -> None:
    """The recipe for the A6000, whose capability the stand-in has."""
    engine = tmp_path / "tiny.engine"
    assert call("export", model, "--recipe", "a6000-fp16", "-o", engine).exit_code == 0
    many = tmp_path / "many"
    many.mkdir()
    for index in range(40):
        Image.fromarray(torture.picture(20, 14, seed=index)).save(many / f"{index}.png")
    if refused:
        driver.fail("cuGraphInstantiateWithFlags", code=driver.LAUNCH_FAILED)
    result, _ = upscale(many, tmp_path / "out", engine, "tensorrt", "--batch", 1)
    assert result.exit_code == 0, result.output
    assert (driver.count("cuGraphLaunch") > 0) is not refused
    assert right(tmp_path / "out", many, model)
    assert not any(driver.held().values())


def test_what_fp16_cannot_do_an_fp32_engine_does_in_the_lane_s_own_thread(
    driver: Any, photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upscale(photos, tmp_path / "first", model)[0].exit_code == 0  # the engine is built
    calls: Counter[int] = Counter()

    def check(guard: Any) -> None:
        calls[threading.get_ident()] += 1
        if calls[threading.get_ident()] <= 2:  # the batch, and the image alone
            raise NonFiniteError([0])
        check_finite(guard)

    monkeypatch.setattr("espan_deploy.backends.trt.check_finite", check)
    result, report = upscale(photos, tmp_path / "out", model, "tensorrt", "--batch", 1)
    assert result.exit_code == 0, result.output
    assert sum(file["redone_fp32"] for file in report["files"]) >= 1
    assert right(tmp_path / "out", photos, model)
    assert not any(driver.held().values())


def test_a_process_of_its_own_ends_clean(photos: Path, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """With what Python and pycuda do on their way out."""
    log = tmp_path / "log"
    monkeypatch.setenv("STANDIN_LOG", str(log))
    code = "from espan_deploy.cli.main import main; main()"
    given = ["upscale", photos, tmp_path / "out", "--model", model, "--engine", "tensorrt", "--precision", "fp16"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, given)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert log.read_text() == ""
    assert right(tmp_path / "out", photos, model)
