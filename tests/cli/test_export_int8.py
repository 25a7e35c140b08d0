"""``export --precision int8`` through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from synthetic import save_synthetic

from espan_deploy import backends
from espan_deploy.backends.model import read_model
from espan_deploy.cli.main import main

A_CODE_LEVELS, MOSTLY = 3, 0.99
"""A value on the edge between two codes may fall either way where factors stand elsewhere: rarely, and by a code."""

CALIBRATION = """
title = "A quick one"
[learning]
steps = {steps}
crops = 2
side = 24
[budget]
max_truth_drop_db = 1.0
min_psnr_db = 20.0
max_share_off_by_more = 1.0
"""

RECIPE = """
title = "A quick one"
backend = "onnxruntime"
precision = "int8"
pixels = "float32"
calibration = "{path}"
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPAN_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_synthetic(tmp_path / "tiny.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        blocks = np.kron(rng.integers(60, 190, (5, 6, 3), np.uint8), np.ones((20, 20, 1), np.uint8))
        Image.fromarray(blocks).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "quick.toml").write_text(CALIBRATION.format(steps=3))
    path = tmp_path / "int8.toml"
    path.write_text(RECIPE.format(path=(tmp_path / "quick.toml").as_posix()))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_model_becomes_int8_and_says_what_it_is_of(model: Path, photos: Path, recipe: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run(
        *("export", model, "--recipe", recipe, "--calibrate", photos),
        *("-o", "tiny_int8.onnx", "--calibration-report", report),
    )
    assert done.exit_code == 0, done.output
    assert "only 3 different photographs" in done.stdout
    made = read_model(tmp_path / "tiny_int8.onnx")
    assert made.description.precision == "int8"
    assert made.description.float_sha256 == read_model(model).sha256
    operators = {node.op_type for node in onnx.load_from_string(made.data).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    document = json.loads(report.read_text())
    assert document["schema_version"] == 1
    assert {each["decision"] for each in document["layers"]} == {"int8"}


def test_without_a_folder_it_says_what_it_took(model: Path, recipe: Path) -> None:
    done = run("export", model, "--recipe", recipe, "-o", "tiny_int8.onnx")
    assert done.exit_code == 0, done.output
    assert "generated pictures" in done.stdout


def test_bytes_go_in_and_come_out_where_the_recipe_says_so(
    model: Path, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    """The same codes in both: only the scaling and rounding at the ends is inside the graph."""
    in_bytes = tmp_path / "bytes.toml"
    in_bytes.write_text(recipe.read_text().replace("float32", "uint8"))
    image = np.random.default_rng(1).integers(60, 190, (1, 24, 20, 3), np.uint8)
    results = []
    for name, how in (("floats.onnx", recipe), ("bytes.onnx", in_bytes)):
        done = run("export", model, "--recipe", how, "--calibrate", photos, "-o", name)
        assert done.exit_code == 0, done.output
        with backends.get("onnxruntime").open(read_model(tmp_path / name), precision="int8") as runner:
            results.append(runner.infer(image))
    assert read_model(tmp_path / "bytes.onnx").description.pixels == "uint8"
    assert onnx.load(tmp_path / "bytes.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert np.abs(results[0].astype(int) - results[1]).max() <= A_CODE_LEVELS
    assert (results[0] == results[1]).mean() > MOSTLY


def test_a_budget_that_cannot_be_met_ends_in_3_and_writes_nothing(
    model: Path, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    text = (tmp_path / "quick.toml").read_text().replace("20.0", "150.0")
    (tmp_path / "quick.toml").write_text(text)
    done = run("export", model, "--recipe", recipe, "--calibrate", photos, "--keep", "w1", "-o", "tiny_int8.onnx")
    assert done.exit_code == 3
    assert "Worst layers" in done.stderr
    assert not (tmp_path / "tiny_int8.onnx").exists()


def test_a_folder_without_images_is_an_error(model: Path, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("export", model, "--recipe", recipe, "--calibrate", tmp_path / "empty", "-o", "tiny_int8.onnx")
    assert done.exit_code == 1
    assert "holds no image to calibrate on" in done.stderr


def test_ctrl_c_leaves_nothing_half_written(
    model: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("espan_deploy.quantize.calibrate.learn", interrupted)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run("export", model, "--recipe", recipe, "-o", "tiny_int8.onnx")
    assert done.exit_code != 0
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.name not in (*before, "cache")] == []


@pytest.mark.parametrize("option", ["--calibrate", "--budget-db", "--calibration-report"])
def test_what_is_for_int8_alone_is_refused_elsewhere(model: Path, option: str) -> None:
    done = run("export", model, "-o", "half.onnx", "--precision", "fp16", option, "1")
    assert done.exit_code == 2
    assert "--precision int8" in done.stderr
