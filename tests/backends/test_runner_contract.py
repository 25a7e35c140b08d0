"""What every backend's runner does, whatever computes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import SCALE, save_synthetic, synthetic_model

from espan_deploy import backends
from espan_deploy.backends.base import Runner
from espan_deploy.backends.finite import NonFiniteError
from espan_deploy.backends.model import read_model
from espan_deploy.errors import EspanDeployError, InferenceError, InputShapeError

FP32_LEVELS = 0.01
"""float32 sums of 72 products in another order, in levels of 255."""

BF16_LEVELS = 6.0
"""bfloat16 keeps 8 bits, so values up to 1.5 times white are off by a level or two after each of two layers."""

ON_GPU = {"tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-cuda"}


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.gpu] if name in ON_GPU else []


CASES = [
    pytest.param((entry.name, precision), marks=marks(entry.name), id=f"{entry.name}-{precision}")
    for entry in backends.BACKENDS
    for precision in entry.module.PRECISIONS
    if precision != "int8"  # a file of its own, and codes of a picture's range: test_int8.py
]

ENTRIES = [pytest.param(entry, marks=marks(entry.name), id=entry.name) for entry in backends.BACKENDS]


def reference(images: NDArray[Any]) -> NDArray[Any]:
    """The synthetic network in numpy, float64: (N, H, W, 3) in [0, 1] to the same."""
    weights = {t.name: to_array(t) for t in synthetic_model().graph.initializer}
    x = conv(images.transpose(0, 3, 1, 2), weights["w1"], np.zeros(8))
    x = conv(x / (1 + np.exp(-x)), weights["w2"], weights["b2"])
    n, _, h, w = x.shape
    x = x.reshape(n, 3, SCALE, SCALE, h, w).transpose(0, 4, 2, 5, 3, 1)
    return x.reshape(n, h * SCALE, w * SCALE, 3)


def to_array(tensor: Any) -> NDArray[Any]:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor), np.float64)


def conv(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]


@pytest.fixture(scope="module", params=CASES)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    name, precision = request.param
    entry = backends.get(name)
    reason = entry.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    model = read_model(save_synthetic(tmp_path_factory.mktemp("model") / "tiny.onnx"))
    with entry.open(model, precision=precision, threads=2) as runner:
        yield runner


def tolerance(runner: Runner) -> float:
    return FP32_LEVELS if runner.info.precision == "fp32" else BF16_LEVELS


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 17), (2, 9, 1), (3, 16, 24), (1, 31, 13)])
def test_bytes(runner: Runner, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    kept = images.copy()
    result = runner.infer(images)
    exact = (reference(images / 255) * 255).clip(0, 255)
    assert result.dtype == np.uint8
    assert np.array_equal(images, kept)
    assert np.abs(result - exact).max() <= 0.5 + tolerance(runner)


def test_floats_are_not_clipped(runner: Runner) -> None:
    images = np.random.default_rng(4).random((2, 12, 10, 3), dtype=np.float32)
    images[0] = 0
    images[1] *= 1.5
    result = runner.infer(images)
    exact = reference(images.astype(np.float64))
    assert result.dtype == np.float32
    assert exact.max() > 1.1
    assert np.abs(result - exact).max() * 255 <= tolerance(runner)


def test_the_result_is_the_callers(runner: Runner) -> None:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    first = runner.infer(images)
    kept = first.copy()
    first[:] = 7
    second = runner.infer(images)
    runner.infer(rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8))
    assert np.array_equal(second, kept)


@pytest.mark.parametrize("pixels", [np.uint8, np.float32])
def test_a_part_of_the_result_goes_where_it_belongs(runner: Runner, pixels: type) -> None:
    scale = runner.description.scale
    images = np.random.default_rng(10).integers(0, 256, (2, 12, 9, 3), dtype=np.uint8)
    if pixels is np.float32:
        images = images.astype(np.float32) / np.float32(255)
    whole = runner.infer(images)
    canvas = np.full((2, 20 * scale, 30 * scale, 3), 7, pixels)
    left = 11 * scale
    out = canvas[:, 2 * scale : 10 * scale, left : left + 5 * scale]
    runner.infer_into(images, (slice(3, 11), slice(4, 9)), out)
    assert np.array_equal(out, whole[:, 3 * scale : 11 * scale, 4 * scale :])
    out[...] = 7
    assert (canvas == 7).all()  # nothing was written beside it
    all_of_it = np.empty_like(whole)
    runner.infer_into(images, (slice(0, 12), slice(0, 9)), all_of_it)
    assert np.array_equal(all_of_it, whole)


def test_a_place_that_does_not_fit_is_refused(runner: Runner) -> None:
    images, scale = np.zeros((1, 8, 8, 3), np.uint8), runner.description.scale
    canvas = np.zeros((1, 8 * scale, 8 * scale, 6), np.uint8)
    kept = (slice(0, 8), slice(2, 8))
    for out in (canvas[..., :3], canvas[:, :, : 6 * scale, ::2], canvas[:, :, : 6 * scale, :3].astype(np.float32)):
        with pytest.raises(InputShapeError, match="does not go into"):
            runner.infer_into(images, kept, out)


def test_a_batch_equals_its_images(runner: Runner) -> None:
    images = np.random.default_rng(6).integers(0, 256, (4, 11, 7, 3), dtype=np.uint8)
    alone = np.concatenate([runner.infer(image[None]) for image in images])
    assert np.abs(runner.infer(images).astype(int) - alone).max() <= (0 if runner.info.precision == "fp32" else 1)


def test_read_only_and_strided_images(runner: Runner) -> None:
    images = np.random.default_rng(7).integers(0, 256, (1, 8, 20, 3), dtype=np.uint8)
    expected = runner.infer(images[:, :, ::2].copy())
    images.flags.writeable = False
    assert np.array_equal(runner.infer(images[:, :, ::2]), expected)
    runner.infer(images)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 4), np.uint8),
        np.zeros((1, 0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.float64),
    ],
    ids=["no batch", "four channels", "empty", "float64"],
)
def test_what_is_no_batch_of_images_is_refused(runner: Runner, images: NDArray[Any]) -> None:
    with pytest.raises(InputShapeError):
        runner.infer(images)


def test_info_says_what_runs(runner: Runner) -> None:
    assert runner.info.backend in {entry.name for entry in backends.BACKENDS}
    assert runner.info.version
    assert runner.info.device


def test_closing_twice_does_no_harm(runner: Runner, tmp_path: Path) -> None:
    entry = backends.get(runner.info.backend)
    other = entry.open(read_model(save_synthetic(tmp_path / "tiny.onnx")), precision=runner.info.precision)
    other.close()
    other.close()


@pytest.mark.parametrize("entry", ENTRIES)
class TestEveryBackend:
    def open(self, entry: backends.Backend, path: Path, lanes: int = 1, **settings: Any) -> list[Runner]:
        reason = entry.unavailable_reason()
        if reason is not None:
            pytest.skip(reason)
        return entry.open_runners(read_model(save_synthetic(path, **settings)), threads=2, lanes=lanes)

    def test_lanes_run_at_once(self, entry: backends.Backend, tmp_path: Path) -> None:
        runners = self.open(entry, tmp_path / "tiny.onnx", lanes=2)
        images = np.random.default_rng(8).integers(0, 256, (2, 1, 24, 24, 3), dtype=np.uint8)
        expected = [runners[0].infer(image) for image in images]
        failures: list[str] = []

        def work(index: int) -> None:
            for _ in range(20):
                if not np.array_equal(runners[index].infer(images[index]), expected[index]):
                    failures.append(f"lane {index}")

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    def test_value_range_is_the_models_own_affair(self, entry: backends.Backend, tmp_path: Path) -> None:
        unit = self.open(entry, tmp_path / "unit.onnx")[0]
        bytes_ = self.open(entry, tmp_path / "bytes.onnx", value_range=255.0)[0]
        images = np.random.default_rng(9).random((1, 9, 9, 3), dtype=np.float32)
        assert np.abs(unit.infer(images) - bytes_.infer(images)).max() * 255 <= FP32_LEVELS

    def test_non_finite_values_are_told(self, entry: backends.Backend, tmp_path: Path) -> None:
        runner = self.open(entry, tmp_path / "tiny.onnx", gain=8.2e37)[0]
        images = np.full((2, 6, 6, 3), 255, np.uint8)
        images[1] = 0
        with pytest.raises(NonFiniteError) as caught:
            runner.infer(images)
        assert caught.value.images == [0]
        assert isinstance(caught.value, InferenceError)

    def test_what_is_no_network_is_refused(self, entry: backends.Backend, tmp_path: Path) -> None:
        path = save_synthetic(tmp_path / "tiny.onnx")
        model = read_model(path)
        if entry.unavailable_reason() is not None:
            pytest.skip("not here")
        broken = type(model)(path, model.data[: len(model.data) // 2], model.description)
        with pytest.raises(EspanDeployError):
            entry.open(broken)


def test_a_profile_names_the_networks_layers(runner: Runner) -> None:
    steps = runner.profile(np.full((1, 40, 48, 3), 99, np.uint8), 3)
    if runner.info.backend not in ("openvino", "onnxruntime"):
        assert steps is None
        return
    assert steps
    assert all(step.ms >= 0 for step in steps)
    model = synthetic_model()
    layers = [(node.name, node.output[0]) for node in model.graph.node if node.op_type == "Conv"]
    for names in layers:
        products = [step for step in steps if "conv" in step.kind.lower() and set(step.names) & set(names)]
        assert len(products) == 1, f"{names} is not one of {steps}"
