"""What waits for a GPU: every call that docs/hardware.md lists as not executed elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espan_deploy import backends
from espan_deploy.backends.cuda_memory import Device, driver_unavailable_reason, gpu
from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.backends.model import read_model
from espan_deploy.backends.trt_slot import REPEATS
from espan_deploy.engine.build import engine_from_onnx
from espan_deploy.engine.open import AT_HAND
from espan_deploy.errors import BackendUnavailableError, EngineMismatchError
from espan_deploy.pixels import with_pixels
from espan_deploy.recipes import load_recipe

FP16_LEVELS = 2
"""The gate allows for a few values two levels off; on this network of two layers none is further."""

NAMES = ["tensorrt", "tensorrt-rtx"]


@pytest.fixture
def device() -> Device:
    return gpu()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, cache: Path) -> str:
    reason = backends.get(request.param).unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


def expected(images: np.ndarray) -> np.ndarray:
    from synthetic import synthetic_description, synthetic_model

    return GraphEvaluator(with_pixels(synthetic_model(), synthetic_description(), "uint8")).run(images)[0]


@pytest.mark.gpu
def test_the_device_says_what_it_is(device: Device) -> None:
    assert device.name
    assert float(device.capability) >= 7.5
    assert driver_unavailable_reason() is None


@pytest.mark.gpu
def test_copies_through_pinned_memory_on_two_streams(device: Device) -> None:
    with device.current():
        source, target = device.pinned(1 << 20), device.pinned(1 << 20)
        source.array[:] = np.random.default_rng(0).integers(0, 256, source.nbytes, np.uint8)
        buffer, first, second = device.allocate(source.nbytes), device.stream(), device.stream()
        began, event = device.event(), device.event()
        began.record(first)
        device.copy_in(buffer, source.array, first)
        event.record(first)
        event.make_wait(second)
        device.copy_out(target.array, buffer, second)
        second.synchronize()
        assert np.array_equal(source.array, target.array)
        assert event.time_since(began) > 0
        for thing in (buffer, source, target, began, event, first, second):
            thing.free()


@pytest.mark.gpu
def test_a_graph_of_a_copy_is_captured_and_replayed(device: Device) -> None:
    with device.current():
        source, target = device.pinned(4096), device.pinned(4096)
        buffer, stream = device.allocate(4096), device.stream()

        def work() -> None:
            device.copy_in(buffer, source.array, stream)
            device.copy_out(target.array, buffer, stream)

        graph = device.capture(stream, work)
        for value in (3, 200):
            source.array[:] = value
            graph.launch(stream)
            stream.synchronize()
            assert (target.array == value).all()
        graph.free()
        for thing in (source, target, buffer, stream):
            thing.free()


@pytest.mark.gpu
def test_an_engine_for_this_gpu_upscales(name: str, model: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (9, 33, 20, 3), np.uint8)
    with backends.get(name).open(read_model(model), precision="fp16") as runner:
        for _ in range(3 * REPEATS):  # launched, captured, replayed
            assert np.abs(runner.infer(images).astype(int) - expected(images)).max() <= FP16_LEVELS
        assert runner.info.device.startswith(gpu().name)


@pytest.mark.gpu
def test_an_engine_file_is_opened_and_another_gpu_s_refused(name: str, model: Path, tmp_path: Path) -> None:
    path = engine_from_onnx(model, load_recipe(AT_HAND[name]), output=tmp_path / "tiny.engine").path
    images = np.random.default_rng(2).integers(0, 256, (1, 16, 16, 3), np.uint8)
    with backends.get(name).open(read_model(path), precision="fp16") as runner:
        assert np.abs(runner.infer(images).astype(int) - expected(images)).max() <= FP16_LEVELS
    with pytest.raises(EngineMismatchError, match="fp32 was asked for"):
        backends.get(name).open(read_model(path), precision="fp32")


@pytest.mark.gpu
def test_an_a6000_engine_runs_on_an_a6000_alone(rtx: Any, model: Path, tmp_path: Path, cache: Path) -> None:
    path = engine_from_onnx(model, load_recipe("a6000-rtx-fp16"), output=tmp_path / "tiny.engine").path
    entry = backends.get("tensorrt-rtx")
    if gpu().capability == "8.6":
        entry.open(read_model(path), precision="fp16").close()
    else:
        with pytest.raises(EngineMismatchError, match=r"built for compute capability 8\.6"):
            entry.open(read_model(path), precision="fp16")
    assert rtx
    assert cache.is_dir()


def test_without_a_driver_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from espan_deploy.backends import cuda_memory

    def none() -> None:
        raise OSError("libcuda.so.1")

    monkeypatch.setattr(cuda_memory, "_driver", none)
    monkeypatch.setattr(cuda_memory, "_gpu", None)
    assert driver_unavailable_reason() == "there is no NVIDIA driver"
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendUnavailableError, match="pycuda is not installed") as caught:
        Device()
    assert caught.value.exit_code == 5
    assert cuda_memory.gpu_unavailable_reason() == "pycuda is not installed"


def test_auto_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    order = [entry.name for entry in backends.BACKENDS if entry.automatic]
    assert order == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime"]
    if backends.get("tensorrt").unavailable_reason() is None:
        pytest.skip("TensorRT runs here")
    choice = backends.choose("auto")
    assert choice.reason.startswith("tensorrt: ")
    for name in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda"):
        if backends.get(name).unavailable_reason() is not None:
            with pytest.raises(BackendUnavailableError) as caught:
                backends.choose(name)
            assert caught.value.exit_code == 5
            assert "pip install" in caught.value.hint
