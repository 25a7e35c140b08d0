"""From a model file to a runner, on a GPU made of numpy: what is built, checked, shared and refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import Device, Engine, module
from synthetic import SCALE, synthetic_description, synthetic_model
from synthetic import synthetic_model as made

from espan_deploy import backends
from espan_deploy.backends.base import Runner
from espan_deploy.backends.manifest import ENGINE_SUFFIX
from espan_deploy.backends.model import read_model
from espan_deploy.backends.precision import choose_precision
from espan_deploy.backends.trt_build import BuiltEngine
from espan_deploy.engine import build as building
from espan_deploy.engine import open as opening
from espan_deploy.engine.build import engine_from_onnx
from espan_deploy.errors import BackendUnavailableError, EngineMismatchError, InputShapeError, VerificationError
from espan_deploy.pipeline.plan import TilePolicy
from espan_deploy.pixels import with_pixels
from espan_deploy.recipes import Recipe, load_recipe, parse_recipe

pytestmark = pytest.mark.usefixtures("cache")

LEVELS = 2
"""An engine here is the FP32 graph; what is built goes through the FP16 gate all the same."""


class Machine:
    """What the code under test takes for TensorRT-RTX and a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = Device()
        self.built: list[Recipe] = []
        self.loaded: list[str] = []
        self.trt = module(None)
        self.trt.Runtime = self._runtime
        monkeypatch.setattr(opening, "Device", lambda: self.device)
        monkeypatch.setattr(building, "Device", lambda: self.device)
        monkeypatch.setattr(building, "build_engine", self._build)
        monkeypatch.setattr("espan_deploy.backends.trt_module.load_module", lambda _name: self.trt)
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setattr(f"espan_deploy.engine.{name}.trt_unavailable_reason", lambda _name: None)

    def _build(self, _trt: Any, _data: bytes, recipe: Recipe, **_: Any) -> BuiltEngine:
        self.built.append(recipe)
        return BuiltEngine(recipe.pixels.encode(), "9.9", (), timing_cache=b"measured")

    def _runtime(self, _logger: Any) -> Any:
        """An "engine" whose bytes say which pixels it takes."""

        class Runtime:
            @staticmethod
            def deserialize_cuda_engine(data: bytes) -> Engine:
                pixels = data.decode()
                self.loaded.append(pixels)
                graph = with_pixels(synthetic_model(), synthetic_description(), pixels, guard=pixels == "uint8")  # type: ignore[arg-type]
                low, best, high = (1, 1, 1), (2, 32, 32), (4, 64, 64)
                shapes = [(n, h, w, 3) if pixels == "uint8" else (n, 3, h, w) for n, h, w in (low, best, high)]
                return Engine(graph, self.device, shapes)

        return Runtime


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 10, 12, 3), np.uint8)


def expected(values: np.ndarray) -> np.ndarray:
    from espan_deploy.backends.graph_evaluator import GraphEvaluator

    return GraphEvaluator(with_pixels(synthetic_model(), synthetic_description(), "uint8")).run(values)[0]


def close(runner: Runner) -> None:
    assert np.abs(runner.infer(images()).astype(int) - expected(images())).max() <= LEVELS


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_an_onnx_file_is_built_for_the_gpu_at_hand_once(machine: Machine, model: Path, name: str) -> None:
    entry = backends.get(name)
    for _ in range(2):
        first, second = entry.open_runners(read_model(model), precision="fp16", lanes=2)
        close(first)
        close(second)
        floats = first.infer(images().astype(np.float32) / np.float32(255))
        assert floats.shape == (3, 10 * SCALE, 12 * SCALE, 3)
        first.close()
        second.close()
    assert [recipe.pixels for recipe in machine.built] == ["uint8", "float32"]
    assert {recipe.precision for recipe in machine.built} == {"fp16"}
    assert machine.loaded == ["uint8", "uint8", "float32", "float32", "uint8", "float32"]  # when built, checked first
    assert not machine.device.memory
    manifest = building.cache.list_cache()[0].manifest
    assert manifest is not None
    assert manifest.device == "Numpy card"
    assert manifest.gate["engine_comparison"]["nonfinite"] == 0
    runtime = list((Path(building.cache.cache_folder()) / "runtime").glob("*.kernels"))
    assert bool(runtime) == (name == "tensorrt-rtx")


def test_an_engine_that_computes_something_else_is_not_shipped(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph was sound; what the builder made of it is not."""
    monkeypatch.setattr(sys.modules[__name__], "synthetic_model", lambda: made(seed=8))
    with pytest.raises(VerificationError, match="the engine is outside its budget"):
        engine_from_onnx(model, load_recipe("this-gpu-fp16"))
    assert building.cache.list_cache() == []


def test_timing_caches_are_kept(machine: Machine, model: Path) -> None:
    engine_from_onnx(model, load_recipe("this-gpu-fp16"))
    (timing,) = (Path(building.cache.cache_folder()) / "timing").iterdir()
    assert timing.read_bytes() == b"measured"


def engine_file(model: Path, **changes: str) -> Path:
    text = f'title = "x"\nbackend = "{changes.get("backend", "tensorrt-rtx")}"\nprecision = "fp16"\n'
    text += f'pixels = "{changes.get("pixels", "uint8")}"\n'
    text += '[target]\ncompute_capability = ["8.6"]\n'
    return engine_from_onnx(model, parse_recipe(text, "x"), output=model.with_suffix(ENGINE_SUFFIX)).path


def test_an_engine_file_chooses_its_backend_and_precision(machine: Machine, model: Path) -> None:
    file = read_model(engine_file(model))
    choice = backends.choose("auto", file)
    assert (choice.backend.name, choice.reason) == ("tensorrt-rtx", "the engine was built for it")
    verdict = choose_precision(choice.backend, file, "auto")
    assert verdict.precision == "fp16"
    with choice.backend.open(file, precision=verdict.precision) as runner:
        close(runner)
        assert runner.info.details["max_height"] == 64
        assert runner.info.precision == "fp16"
        with pytest.raises(InputShapeError, match="bytes only"):
            runner.infer(images().astype(np.float32))
    with pytest.raises(EngineMismatchError, match="not of openvino"):
        backends.choose("openvino", file)
    with pytest.raises(EngineMismatchError, match="fp32 was asked for"):
        choice.backend.open(file, precision="fp32")


def test_an_engine_without_weights_is_not_run(machine: Machine, model: Path) -> None:
    text = 'title = "x"\nbackend = "tensorrt-rtx"\nprecision = "fp16"\n[target]\ncompute_capability = ["8.6"]\n'
    recipe = parse_recipe(text + '[build]\nweights = "stripped"\n', "x")
    path = engine_from_onnx(model, recipe, output=model.with_suffix(ENGINE_SUFFIX)).path
    with pytest.raises(EngineMismatchError, match="holds no weights"):
        backends.get("tensorrt-rtx").open(read_model(path), precision="fp16")
    assert machine.loaded == []


def test_a_float_engine_takes_bytes_as_well(machine: Machine, model: Path) -> None:
    file = read_model(engine_file(model, pixels="float32"))
    with backends.get("tensorrt-rtx").open(file, precision="fp16") as runner:
        close(runner)
    assert machine.loaded == ["float32"]


def test_an_engine_for_another_gpu_or_version_is_never_deserialised(machine: Machine, model: Path) -> None:
    path = engine_file(model)
    machine.device.capability = "9.0"
    with pytest.raises(EngineMismatchError, match=r"capability 8\.6; Numpy card is 9\.0"):
        backends.get("tensorrt-rtx").open(read_model(path), precision="fp16")
    machine.device.capability = "8.6"
    machine.trt.__version__ = "9.10"
    with pytest.raises(EngineMismatchError, match=r"tensorrt-rtx 9\.9, this is 9\.10"):
        backends.get("tensorrt-rtx").open(read_model(path), precision="fp16")
    assert machine.loaded == []


def test_a_recipe_for_another_card_is_refused_before_building(machine: Machine, model: Path) -> None:
    machine.device.capability = "9.0"
    with pytest.raises(BackendUnavailableError, match=r"is for compute capability 8\.6; Numpy card is 9\.0") as caught:
        engine_from_onnx(model, load_recipe("a6000-fp16"))
    assert "this-gpu-fp16" in caught.value.hint
    assert machine.built == []


def test_tiles_are_cut_to_what_the_engine_takes() -> None:
    """A wide image within the memory's limit is cut to the profile's sides all the same."""
    rows = TilePolicy("auto", 10**8, (64, 80)).plan(50, 400, synthetic_description())
    shapes = [tile.shape for row in rows for tile in row]
    assert len(shapes) > 4
    assert all(height <= 64 and width <= 80 for height, width in shapes)
