"""The models that come with the package: what a newcomer's first command runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from espan_deploy import backends
from espan_deploy.backends.base import Runner
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.backends.precision import measure
from espan_deploy.cli.main import main
from espan_deploy.deploy import deploy_file
from espan_deploy.engine.build import graph_from_onnx
from espan_deploy.models import MODELS, default_model
from espan_deploy.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]

MAX_BYTES = 1_000_000

INT8_BUDGET_DB = 0.03

CPU_FLAGS = Path("/proc/cpuinfo")
VNNI = CPU_FLAGS.is_file() and any(flag in CPU_FLAGS.read_text() for flag in ("avx512_vnni", "avx_vnni"))

SAME_WEIGHTS = 1e-6
"""The shipped weights against a fresh export's: float64 folds, rounded to float32 once, on other machines' BLAS."""


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> ModelFile:
    return read_model(MODELS[request.param].path)


def test_the_default_is_clean() -> None:
    assert default_model() == MODELS["clean"].path


def test_it_is_small_and_says_what_it_is(model: ModelFile) -> None:
    description = model.description
    assert len(model.data) < MAX_BYTES
    assert (description.network, description.scale, description.halo) == ("espan", 4, 23)
    assert (description.form, description.source) == ("training", f"{model.path.stem}.safetensors")
    assert description.convolutions == 21


def test_it_is_the_checkpoint_in_the_repository_folded(model: ModelFile) -> None:
    exported = deploy_file(ROOT / "training" / "checkpoints" / f"{model.path.stem}.safetensors")
    assert exported.description == model.description
    shipped = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(model.data).graph.initializer}
    for tensor in exported.model.graph.initializer:
        fresh = onnx.numpy_helper.to_array(tensor)
        assert np.abs(fresh - shipped[tensor.name]).max() <= SAME_WEIGHTS * max(1.0, np.abs(fresh).max())


def test_int8_lies_beside_it_and_is_what_was_kept(model: ModelFile) -> None:
    assert model.int8 is not None
    assert len(model.int8.data) < MAX_BYTES
    assert (model.int8.description.scale, model.int8.description.halo) == (4, 23)
    kept = json.loads((ROOT / "calibration" / "kept" / f"{model.path.stem}.json").read_text())
    graph = onnx.load_from_string(model.int8.data).graph
    coded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    floats = {node.name for node in graph.node if node.op_type == "Conv" and node.input[1] not in coded}
    assert floats == set(kept["kept_in_float"])
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith(".scale")}
    for name, value in kept["scheme"]["values"].items():
        assert scales[f"{name}.scale"] == pytest.approx(value["scale"], rel=1e-5)
    assert kept["comparison"]["truth_drop_db"] <= kept["budget"]["max_truth_drop_db"] <= INT8_BUDGET_DB


@pytest.mark.skipif(not VNNI, reason="sums of bytes overflow on processors without VNNI")
def test_int8_is_near_fp32_on_text_and_on_a_photograph(model: ModelFile) -> None:
    """What ``auto`` asks of it before it takes it."""
    near = measure(backends.get("openvino"), model, "int8")
    assert near.passes, str(near)


@pytest.fixture(scope="module")
def runner(model: ModelFile) -> Runner:
    return backends.get("onnxruntime").open(model)


HOSTILE = {
    "noise": np.random.default_rng(1).integers(0, 256, (40, 40, 3)),
    "black and white noise": np.random.default_rng(2).integers(0, 2, (40, 40, 1)).repeat(3, 2) * 255,
    "checkerboard": np.indices((40, 40)).sum(0)[..., None].repeat(3, 2) % 2 * 255,
    "black": np.zeros((40, 40, 3)),
    "white": np.full((40, 40, 3), 255),
    "one pixel": np.full((1, 1, 3), 77),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_give_finite_values(runner: Runner, name: str) -> None:
    image = HOSTILE[name].astype(np.float32)[None] / 255
    assert np.isfinite(runner.infer(np.ascontiguousarray(image))).all()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_colour_stays_flat(runner: Runner, level: int) -> None:
    result = runner.infer(np.full((1, 60, 60, 3), level, np.uint8))[0, 100:-100, 100:-100]
    assert np.abs(result.astype(int) - level).max() <= 5


def test_it_passes_the_half_precision_gate(model: ModelFile) -> None:
    """The A6000's own: outside its budget this raises."""
    _, gate = graph_from_onnx(model, load_recipe("a6000-rtx-fp16"))
    assert gate["comparison"]["nonfinite"] == 0
    assert gate["kept_fp32"] == []


def test_upscaling_needs_no_model_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 13, 3), dtype=np.uint8)).save(source / "a.png")
    result = CliRunner().invoke(main, ["upscale", str(source), str(tmp_path / "out"), "--precision", "fp32"])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (52, 36)
