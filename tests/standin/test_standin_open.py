"""From a model file to runners: what is built, gated, kept, shared and refused; on the stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import SCALE, synthetic_description, synthetic_model

from espan_deploy import backends
from espan_deploy.backends.base import Runner
from espan_deploy.backends.cuda_memory import gpu
from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.backends.manifest import ENGINE_SUFFIX
from espan_deploy.backends.model import read_model
from espan_deploy.backends.trt_module import load_module
from espan_deploy.engine import cache as engine_cache
from espan_deploy.engine.build import engine_from_onnx
from espan_deploy.errors import BackendUnavailableError, EngineMismatchError, InputShapeError, VerificationError
from espan_deploy.pixels import with_pixels
from espan_deploy.recipes import load_recipe, parse_recipe

pytestmark = pytest.mark.usefixtures("cache")

LEVELS = 2
"""FP16 and FP32 of two layers."""

NAMES = {"tensorrt": "this-gpu-fp16", "tensorrt-rtx": "this-gpu-rtx-fp16"}


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 10, 12, 3), np.uint8)


def close(runner: Runner) -> None:
    expected = GraphEvaluator(with_pixels(synthetic_model(), synthetic_description(), "uint8")).run(images())[0]
    assert np.abs(runner.infer(images()).astype(int) - expected).max() <= LEVELS


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each plan that is built or loaded, in order."""
    seen: list[str] = []
    for name in NAMES:
        module: Any = load_module(name)

        def note(kind: Any, method: str, word: str) -> None:
            original = getattr(kind, method)

            def noted(self: Any, *arguments: Any) -> Any:
                seen.append(word)
                return original(self, *arguments)

            monkeypatch.setattr(kind, method, noted)

        note(module.Builder, "build_serialized_network", "built")
        note(module.Runtime, "deserialize_cuda_engine", "loaded")
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_an_onnx_file_is_built_for_the_gpu_at_hand_once(
    driver: Any, plans: list[str], model: Path, cache: Path, name: str
) -> None:
    entry = backends.get(name)
    assert entry.unavailable_reason() is None
    for _ in range(2):
        first, second = entry.open_runners(read_model(model), precision="fp16", lanes=2)
        close(first)
        close(second)
        floats = first.infer(images().astype(np.float32) / np.float32(255))
        assert floats.shape == (3, 10 * SCALE, 12 * SCALE, 3)
        first.close()
        second.close()
    # Bytes, then floats: each is checked when it is built, and loaded when it is used.
    assert plans == ["built", "loaded", "loaded"] * 2 + ["loaded"] * 2
    assert not any(driver.held().values())
    kept = engine_cache.list_cache()
    assert {entry.manifest.settings["pixels"] for entry in kept if entry.manifest} == {"uint8", "float32"}
    for entry in kept:
        assert entry.manifest is not None
        assert entry.manifest.device == "Stand-in card"
        assert entry.manifest.gate["engine_comparison"]["nonfinite"] == 0
    assert bool(list((cache / "runtime").glob("*.kernels"))) == (name == "tensorrt-rtx")
    timing = [path.read_bytes() for path in (cache / "timing").glob("*")]
    assert timing == ([b"measured"] if name == "tensorrt" else [])


def test_an_engine_that_computes_something_else_is_not_shipped(
    driver: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph was sound; what the builder made of it is not."""
    other = with_pixels(synthetic_model(seed=8), synthetic_description(), "uint8", guard=True)
    monkeypatch.setattr(load_module("tensorrt"), "GraphEvaluator", lambda _model: GraphEvaluator(other))
    with pytest.raises(VerificationError, match="the engine is outside its budget"):
        engine_from_onnx(model, load_recipe("this-gpu-fp16"))
    assert engine_cache.list_cache() == []
    assert not any(driver.held().values())


def engine_file(model: Path, backend: str = "tensorrt", pixels: str = "uint8", more: str = "") -> Path:
    text = f'title = "x"\nbackend = "{backend}"\nprecision = "fp16"\npixels = "{pixels}"\n{more}'
    return engine_from_onnx(model, parse_recipe(text, "x"), output=model.with_suffix(ENGINE_SUFFIX)).path


def test_an_engine_file_chooses_its_backend_and_precision(model: Path) -> None:
    file = read_model(engine_file(model))
    entry = backends.choose("auto", file).backend
    assert entry.name == "tensorrt"
    with entry.open(file, precision="fp16") as runner:
        close(runner)
        assert runner.info.details["max_height"] == 512
        assert runner.info.precision == "fp16"
        with pytest.raises(InputShapeError, match="bytes only"):
            runner.infer(images().astype(np.float32))
    with pytest.raises(EngineMismatchError, match="not of openvino"):
        backends.choose("openvino", file)
    with pytest.raises(EngineMismatchError, match="fp32 was asked for"):
        entry.open(file, precision="fp32")


def test_an_engine_without_weights_is_built_and_not_run(plans: list[str], model: Path) -> None:
    path = engine_file(model, more='[build]\nweights = "stripped"\n')
    with pytest.raises(EngineMismatchError, match="holds no weights"):
        backends.get("tensorrt").open(read_model(path), precision="fp16")
    assert plans == ["built"]


def test_an_engine_for_later_versions_is_gated_and_run(model: Path) -> None:
    path = engine_file(model, more="[target]\nversion_compatible = true\n")
    with backends.get("tensorrt").open(read_model(path), precision="fp16") as runner:
        close(runner)


def test_a_float_engine_takes_bytes_as_well(model: Path) -> None:
    with backends.get("tensorrt").open(read_model(engine_file(model, pixels="float32")), precision="fp16") as runner:
        close(runner)


def test_an_engine_for_another_gpu_or_version_is_never_deserialised(
    plans: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read_model(engine_file(model))
    plans.clear()
    monkeypatch.setattr(gpu(), "capability", "9.0")
    with pytest.raises(EngineMismatchError, match=r"capability 8\.6; Stand-in card is 9\.0"):
        backends.get("tensorrt").open(file, precision="fp16")
    monkeypatch.undo()
    monkeypatch.setattr(load_module("tensorrt"), "__version__", "99.2")
    with pytest.raises(EngineMismatchError, match=r"tensorrt 99\.1, this is 99\.2"):
        backends.get("tensorrt").open(file, precision="fp16")
    assert plans == []


def test_a_recipe_for_another_card_is_refused_before_building(
    plans: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu(), "capability", "9.0")
    with pytest.raises(
        BackendUnavailableError, match=r"is for compute capability 8\.6; Stand-in card is 9\.0"
    ) as caught:
        engine_from_onnx(model, load_recipe("a6000-fp16"))
    assert "this-gpu-fp16" in caught.value.hint
    assert plans == []


def test_lanes_that_cannot_all_be_opened_leave_nothing_behind(driver: Any, model: Path) -> None:
    file = read_model(engine_file(model))
    driver.limit(2 << 20)  # the engine, and one context of two
    with pytest.raises(Exception, match="makes no execution context"):
        backends.get("tensorrt").open_runners(file, precision="fp16", lanes=2)
    assert not any(driver.held().values())
