"""The runner and its slots on the stand-in: chunks, buffers, streams, graphs, and every way to fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import SCALE, synthetic_description, synthetic_model

from espan_deploy.backends.cuda_memory import gpu
from espan_deploy.backends.finite import NonFiniteError
from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.backends.trt import LoadedEngine, TrtRunner, chunks
from espan_deploy.backends.trt_build import build_engine
from espan_deploy.backends.trt_module import load_module
from espan_deploy.backends.trt_slot import REPEATS
from espan_deploy.errors import EngineMismatchError, InferenceError, InputShapeError
from espan_deploy.pipeline.infer import ran_out_of_memory
from espan_deploy.pixels import with_pixels
from espan_deploy.recipes import RunSettings, parse_recipe

MOST = 4
LEVEL = 1
"""Bytes computed by the same runtime in other batches: at most a rounding apart."""


def recipe(backend: str, pixels: str, low: int = 1, target: str = "") -> Any:
    return parse_recipe(
        f'title = "x"\nbackend = "{backend}"\nprecision = "fp32"\npixels = "{pixels}"\n'
        f"[profile]\nbatch = {{ min = {low}, opt = 3, max = {MOST} }}\n"
        "height = { min = 1, opt = 16, max = 32 }\nwidth = { min = 1, opt = 16, max = 32 }\n" + target,
        "x",
    )


class Card:
    """An engine on the stand-in, and what it computed."""

    def __init__(
        self,
        pixels: str = "uint8",
        backend: str = "tensorrt",
        *,
        low: int = 1,
        order: str = "RGB",
        run: RunSettings | None = None,
        cache: Path | None = None,
        target: str = "",
        host_code: bool = False,
        **settings: Any,
    ) -> None:
        described = synthetic_description(color_order=order, value_range=settings.get("value_range", 1.0))
        self.trt = load_module(backend)
        self.trt.runs.clear()
        graph = with_pixels(synthetic_model(**settings), described, pixels, guard=pixels == "uint8")  # type: ignore[arg-type]
        built = build_engine(self.trt, graph.SerializeToString(), recipe(backend, pixels, low, target))
        described = replace(described, pixels=pixels, color_order="RGB" if pixels == "uint8" else order)
        self.loaded = LoadedEngine(
            self.trt, backend, built.data, described, gpu(), run=run, host_code=host_code, runtime_cache=cache
        )

    def runner(self, **settings: Any) -> TrtRunner:
        return TrtRunner(self.loaded, precision="fp32", **settings)

    @property
    def batches(self) -> list[int]:
        return [shape[0] for shape in self.trt.runs]


@pytest.fixture(autouse=True)
def everything_is_given_back(driver: Any) -> Iterator[None]:
    yield
    assert not any(driver.held().values()), driver.held()


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def expected(values: np.ndarray) -> np.ndarray:
    return GraphEvaluator(with_pixels(synthetic_model(), synthetic_description(), "uint8")).run(values)[0]


def agrees(runner: TrtRunner, batch: np.ndarray) -> bool:
    return bool(np.abs(runner.infer(batch).astype(int) - expected(batch)).max() <= LEVEL)


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (4, [4]), (5, [2, 3]), (9, [3, 3, 3]), (17, [3, 3, 4, 3, 4])])
def test_batches_are_as_large_as_the_profile_allows_and_even(count: int, sizes: list[int]) -> None:
    assert [size for _, size, _ in chunks(count, (1, 2, MOST))] == sizes
    card = Card()
    batch = images(count, 9, 11)
    with card.runner() as runner:
        assert agrees(runner, batch)
        assert agrees(runner, batch)
    assert card.batches == 2 * sizes


def test_sizes_may_change_from_call_to_call() -> None:
    with Card(run=RunSettings(cuda_graph=True)).runner() as runner:
        for height, width in ((4, 5), (32, 32), (1, 1), (31, 7), (32, 32)):
            assert agrees(runner, images(3, height, width, seed=height))


def test_a_part_goes_straight_to_its_place() -> None:
    batch = images(6, 10, 12)
    canvas = np.zeros((6, 9 * SCALE, 20 * SCALE, 3), np.uint8)
    with Card().runner() as runner:
        runner.infer_into(batch, (slice(1, 8), slice(2, 12)), canvas[:, : 7 * SCALE, 5 * SCALE : 15 * SCALE])
    wanted = expected(batch)[:, SCALE : 8 * SCALE, 2 * SCALE :].astype(int)
    assert np.abs(canvas[:, : 7 * SCALE, 5 * SCALE : 15 * SCALE] - wanted).max() <= LEVEL
    assert not canvas[:, 7 * SCALE :].any()


def test_results_belong_to_the_caller() -> None:
    with Card().runner() as runner:
        first = runner.infer(images(2, 8, 8, seed=1))
        kept = first.copy()
        runner.infer(images(2, 8, 8, seed=2))
        assert np.array_equal(first, kept)


def test_below_the_smallest_batch_it_is_filled_up() -> None:
    card = Card(low=3)
    with card.runner() as runner:
        assert agrees(runner, images(5, 6, 6))
    assert card.batches == [3, 3]


def test_stages_are_timed_on_their_own_streams_and_summed_over_chunks() -> None:
    with Card().runner() as runner:
        runner.infer(images(MOST, 8, 8))
        one = dict(runner.last_stages_ms)
        runner.infer(images(3 * MOST, 8, 8))
        three = dict(runner.last_stages_ms)
    assert list(one) == list(three) == ["copy in", "engine", "copy out"]
    assert all(three[stage] > ms > 0 for stage, ms in one.items())


@pytest.mark.parametrize("pixels", ["float32", "float16"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_float_engines_take_bytes_and_floats(pixels: str, order: str) -> None:
    tolerance = 2e-6 if pixels == "float32" else 8e-3  # of white: FP16 at both ends
    batch = images(3, 7, 6)
    with Card(pixels, order=order, value_range=255.0).runner() as runner:
        result = runner.infer(batch)
        floats = runner.infer(batch.astype(np.float32) / np.float32(255))
    swap = slice(None, None, -1 if order == "BGR" else 1)
    wanted = expected(np.ascontiguousarray(batch[..., swap]))[..., swap]
    assert np.abs(result.astype(int) - wanted).max() <= 255 * tolerance + LEVEL
    inside = (floats > 0) & (floats < 1)
    assert np.abs(floats * 255 - wanted)[inside].max() <= 255 * tolerance + LEVEL


def test_byte_engines_refuse_sixteen_bits() -> None:
    with Card().runner() as runner, pytest.raises(InputShapeError, match="bytes only"):
        runner.infer(images(1, 8, 8).astype(np.float32))


@pytest.mark.parametrize("size", [(33, 8), (8, 33)])
def test_outside_of_the_profile_says_what_to_do(size: tuple[int, int]) -> None:
    with Card().runner() as runner, pytest.raises(InputShapeError, match="outside of the engine's profile") as caught:
        runner.infer(images(1, *size))
    assert "1x1 to 32x32" in caught.value.message
    assert "--tile 32" in caught.value.hint


def test_values_that_are_not_finite_are_told_of_the_right_image() -> None:
    batch = np.full((2 * MOST, 6, 6, 3), 255, np.uint8)
    batch[0] = 0
    for pixels in ("uint8", "float32"):
        with Card(pixels, gain=8.2e37).runner() as runner, pytest.raises(NonFiniteError) as caught:
            runner.infer(batch)
        assert caught.value.images == list(range(1, 2 * MOST))


# Memory


@pytest.mark.parametrize("function", ["cuMemAlloc_v2", "cuMemHostAlloc"])
@pytest.mark.parametrize("after", range(6))
def test_after_running_out_of_memory_anywhere_the_next_call_is_right(driver: Any, function: str, after: int) -> None:
    """Two slots with three tensors each: the n-th allocation of a larger batch fails, a smaller one comes next."""
    with Card(run=RunSettings(cuda_graph=True)).runner() as runner:
        assert agrees(runner, images(2, 6, 6))
        driver.fail(function, after=after, times=2)
        with pytest.raises(InferenceError) as caught:
            runner.infer(images(2 * MOST, 20, 20))
        assert ran_out_of_memory(caught.value)
        driver.forget()
        assert agrees(runner, images(7, 7, 9))
        assert agrees(runner, images(2 * MOST, 20, 20))


def test_an_engine_that_does_not_fit_says_so(driver: Any) -> None:
    driver.limit(100)
    with pytest.raises(EngineMismatchError, match="out of memory"):
        Card()
    driver.limit(1 << 20)
    card = Card()
    with pytest.raises(InferenceError, match=r"no execution context: .*OutOfMemory") as caught:
        card.runner()
    assert "smaller max" in caught.value.hint
    driver.limit(48 << 30)
    with card.runner() as runner:
        assert agrees(runner, images(1, 8, 8))


# Failures under way


def test_a_failed_launch_is_translated_and_nothing_stays_under_way(driver: Any) -> None:
    with Card().runner() as runner:
        driver.fail("cuLaunchHostFunc", after=1, times=1)
        with pytest.raises(InferenceError, match=r"failed to run: \[runner.cpp\]"):
            runner.infer(images(3 * MOST, 8, 8))
        assert agrees(runner, images(3 * MOST, 8, 8, seed=1))
        driver.fail("cuLaunchHostFunc", times=1)
        with pytest.raises(InferenceError) as caught:
            runner.infer(images(1, 8, 8))
        assert caught.value.message.count("runner.cpp") == 1  # the first failure's words are not repeated


def test_a_kernel_that_fails_loses_the_device_which_every_call_tells_and_closing_survives(driver: Any) -> None:
    with captured().runner() as runner:
        for _ in range(2 * REPEATS):
            runner.infer(images(1, 8, 8))
        driver.fail("kernel", after=1, times=1, code=driver.LAUNCH_FAILED)
        for _ in range(2):
            with pytest.raises(InferenceError, match=r"Stand-in card failed.*launch failure"):
                runner.infer(images(2 * MOST, 8, 8))
    driver.wipe()


def test_an_engine_that_the_runtime_refuses() -> None:
    with pytest.raises(EngineMismatchError, match="magic tag"):
        LoadedEngine(load_module("tensorrt"), "tensorrt", b"junk", synthetic_description(), gpu())


def test_engines_for_later_versions_may_run_host_code_and_others_not() -> None:
    target = "[target]\nversion_compatible = true\n"
    with pytest.raises(EngineMismatchError, match="host code, which is not allowed"):
        Card(target=target)
    with Card(target=target, host_code=True).runner() as runner:
        assert agrees(runner, images(1, 8, 8))


def test_two_engines_each_hear_their_own_messages(driver: Any) -> None:
    first, second = Card(), Card()
    with first.runner() as one, second.runner() as other:
        for runner in (one, other):
            driver.fail("cuLaunchHostFunc", times=1)
            with pytest.raises(InferenceError, match=r"runner\.cpp"):
                runner.infer(images(1, 8, 8))


# Graphs


def captured(run: RunSettings | None = None) -> Card:
    return Card(run=run or RunSettings(cuda_graph=True))


def test_a_shape_that_keeps_coming_is_captured_and_any_other_ends_that(driver: Any) -> None:
    with captured().runner() as runner:
        for _ in range(REPEATS):
            assert agrees(runner, images(MOST, 8, 8))
        assert driver.count("cuStreamBeginCapture_v2") == 0
        for seed in range(REPEATS):
            assert agrees(runner, images(MOST, 8, 8, seed=seed))
        assert driver.count("cuStreamBeginCapture_v2") == driver.live("executable") == 1
        assert set(runner.info.details["cuda_graph_ratio"]) == {f"{MOST}x8x8x3"}
        assert agrees(runner, images(MOST, 9, 8))
        assert driver.live("executable") == 0
        assert agrees(runner, images(MOST, 32, 32))
        assert agrees(runner, images(MOST, 8, 8))
        assert driver.count("cuStreamBeginCapture_v2") == 1


def test_a_folder_of_mixed_sizes_captures_nothing_and_waits_for_nothing_more(driver: Any) -> None:
    with captured().runner() as runner:
        for side in range(1, 33):
            runner.infer(images(1, side, 8))
        assert driver.count("cuStreamBeginCapture_v2") == 0
        assert driver.count("cuEventSynchronize") == 32
        assert driver.count("kernel") == 32
        assert driver.count("wait that spins") == 0


@pytest.mark.parametrize(
    ("who", "answer"), [("driver", "cuGraphInstantiateWithFlags answered 719"), ("TensorRT", "failed to run")]
)
def test_a_refused_capture_leaves_launches(driver: Any, monkeypatch: pytest.MonkeyPatch, who: str, answer: str) -> None:
    card = captured()
    monkeypatch.setattr(card.trt.Context, "allocates_always", who == "TensorRT")
    with card.runner() as runner:
        if who == "driver":
            driver.fail("cuGraphInstantiateWithFlags", code=driver.LAUNCH_FAILED)
        for seed in range(3 * REPEATS):
            assert agrees(runner, images(1, 8, 8, seed=seed))
        assert answer in runner.info.details["cuda_graph"]
        assert driver.count("cuStreamBeginCapture_v2") == 1
        assert driver.count("cuGraphLaunch") == 0


def test_replays_that_are_slower_are_given_up(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's clock counts operations: a second kernel in the graph makes it slower."""
    with captured().runner() as runner:
        capture = runner.device.capture

        def twice(stream: Any, work: Any) -> Any:
            return capture(stream, lambda: (work(), work()))

        monkeypatch.setattr(runner.device, "capture", twice)
        for _ in range(3 * REPEATS):
            assert agrees(runner, images(1, 8, 8))
        (ratio,) = runner.info.details["cuda_graph_ratio"].values()
        assert ratio > 1
        assert driver.count("cuGraphLaunch") == REPEATS
        assert driver.live("executable") == 0


def test_rtx_captures_by_itself_and_keeps_its_kernels(driver: Any, tmp_path: Path) -> None:
    path = tmp_path / "kernels"
    path.write_bytes(b"old")
    saved: dict[Path, bytes] = {}
    run = RunSettings(cuda_graph=True, specialization="eager")
    card = Card(backend="tensorrt-rtx", run=run, cache=path)
    with card.runner(save=saved.__setitem__) as runner:
        for _ in range(2 * REPEATS):
            assert agrees(runner, images(MOST + 1, 8, 8))
        context = runner._slots[0]._context
        assert context.config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        assert context.config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        assert runner._slots[1]._context is not context  # addresses would change from chunk to chunk
        assert runner.info.details["specialization"] == "eager"
        assert driver.count("cuStreamBeginCapture_v2") == 0
        del context
    assert saved == {path: b"old+"}


# Lifetimes


def test_closing_gives_everything_back_and_may_be_repeated(driver: Any) -> None:
    runner = captured().runner()
    for _ in range(2 * REPEATS):
        runner.infer(images(MOST, 8, 8))
    assert driver.held()["bytes"] > 0
    runner.close()
    runner.close()
    assert not any(driver.held().values())


def test_lanes_share_one_engine_until_the_last_is_closed() -> None:
    card = Card()
    first, second = card.runner(), card.runner()
    batch = images(2, 8, 8)
    assert np.array_equal(first.infer(batch), second.infer(batch))
    first.close()
    assert agrees(second, batch)
    second.close()
    assert card.loaded.engine is None
