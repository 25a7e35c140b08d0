"""The runner's own work, on a GPU made of numpy; and, where there is a real one, on that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import Device, Engine, module
from synthetic import SCALE, synthetic_description, synthetic_model

from espan_deploy.backends.finite import NonFiniteError
from espan_deploy.backends.trt import SLOTS, LoadedEngine, TrtRunner
from espan_deploy.errors import EngineMismatchError, InferenceError, InputShapeError
from espan_deploy.pixels import with_pixels
from espan_deploy.recipes import RunSettings

LOW, BEST, HIGH = (1, 1, 1), (2, 16, 16), (4, 32, 32)
LEVEL = 1
"""Bytes computed by the same runtime in other batches: at most a rounding apart."""


def profile(pixels: str, low: tuple[int, int, int] = LOW) -> Any:
    if pixels == "uint8":
        return [(*shape, 3) for shape in (low, BEST, HIGH)]
    return [(n, 3, h, w) for n, h, w in (low, BEST, HIGH)]


class Card:
    """A fake device with one engine on it."""

    def __init__(
        self,
        pixels: str = "uint8",
        backend: str = "tensorrt",
        *,
        low: tuple[int, int, int] = LOW,
        order: str = "RGB",
        run: RunSettings | None = None,
        cache: Path | None = None,
        **settings: Any,
    ) -> None:
        described = synthetic_description(color_order=order, value_range=settings.get("value_range", 1.0))
        self.device = Device()
        model = with_pixels(synthetic_model(**settings), described, pixels, guard=pixels == "uint8")  # type: ignore[arg-type]
        self.engine = Engine(model, self.device, profile(pixels, low))
        described = replace(described, pixels=pixels, color_order="RGB" if pixels == "uint8" else order)
        self.loaded = LoadedEngine(
            module(self.engine), backend, b"engine", described, self.device, run=run, runtime_cache=cache
        )

    def runner(self, **settings: Any) -> TrtRunner:
        return TrtRunner(self.loaded, precision="fp16", **settings)


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def expected(values: np.ndarray, **settings: Any) -> np.ndarray:
    from espan_deploy.backends.graph_evaluator import GraphEvaluator

    model = with_pixels(synthetic_model(**settings), synthetic_description(), "uint8")
    return GraphEvaluator(model).run(values)[0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 9])
def test_batches_are_cut_to_the_engine_s_best_and_put_together(count: int) -> None:
    card = Card()
    batch = images(count, 9, 11)
    with card.runner() as runner:
        for _ in range(2):
            result = runner.infer(batch)
            assert np.abs(result.astype(int) - expected(batch)).max() <= LEVEL
    sizes = [shape[0] for shape in card.engine.contexts[0].runs]
    assert max(sizes) <= BEST[0]
    assert sum(sizes) == 2 * count


def test_sizes_may_change_from_call_to_call() -> None:
    with Card().runner() as runner:
        for height, width in ((4, 5), (32, 32), (1, 1), (31, 7), (32, 32)):
            batch = images(3, height, width, seed=height)
            assert np.abs(runner.infer(batch).astype(int) - expected(batch)).max() <= LEVEL


def test_results_belong_to_the_caller() -> None:
    with Card().runner() as runner:
        first = runner.infer(images(2, 8, 8, seed=1))
        kept = first.copy()
        runner.infer(images(2, 8, 8, seed=2))
        assert np.array_equal(first, kept)


def test_below_the_smallest_batch_it_is_filled_up() -> None:
    card = Card(low=(2, 1, 1))
    batch = images(3, 6, 6)
    with card.runner() as runner:
        assert np.abs(runner.infer(batch).astype(int) - expected(batch)).max() <= LEVEL
    assert [shape[0] for shape in card.engine.contexts[0].runs] == [2, 2]


def test_copies_and_kernels_go_on_streams_of_their_own() -> None:
    """The next chunk's copy in is queued before the last one's result is waited for."""
    card = Card()
    with card.runner() as runner:
        runner.infer(images(8, 8, 8))
        streams = card.device.streams
        assert len(streams) == 3
        assert all(stream.queue for stream in streams)
    assert SLOTS == 2


def test_stages_are_timed_on_their_own_streams_and_summed_over_chunks() -> None:
    with Card().runner() as runner:
        runner.infer(images(BEST[0], 8, 8))
        one = dict(runner.last_stages_ms)
        runner.infer(images(3 * BEST[0], 8, 8))
        three = dict(runner.last_stages_ms)
    assert list(one) == ["copy in", "engine", "copy out"]
    assert all(ms > 0 for ms in one.values())
    assert three == {stage: 3 * ms for stage, ms in one.items()}


@pytest.mark.parametrize("pixels", ["float32", "float16"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_float_engines_take_bytes_and_floats(pixels: str, order: str) -> None:
    tolerance = 2e-6 if pixels == "float32" else 8e-3  # of white: FP16 at both ends
    batch = images(3, 7, 6)
    settings: dict[str, Any] = {"value_range": 255.0}
    with Card(pixels, order=order, **settings).runner() as runner:
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
    batch = np.full((3, 6, 6, 3), 255, np.uint8)
    batch[0] = 0
    for pixels in ("uint8", "float32"):
        with Card(pixels, gain=8.2e37).runner() as runner, pytest.raises(NonFiniteError) as caught:
            runner.infer(batch)
        assert caught.value.images == [1, 2]


def test_out_of_memory_says_so() -> None:
    card = Card()
    card.device.limit = 100
    with card.runner() as runner, pytest.raises(InferenceError, match="out of memory"):
        runner.infer(images(1, 16, 16))


def test_a_failed_launch_is_translated() -> None:
    card = Card()
    card.engine.fail = True
    card.loaded.messages.add("ERROR", "the reason")
    with card.runner() as runner, pytest.raises(InferenceError, match="the reason"):
        runner.infer(images(1, 8, 8))


def test_an_engine_that_the_runtime_refuses() -> None:
    with pytest.raises(EngineMismatchError, match="not for this GPU"):
        LoadedEngine(module(None), "tensorrt", b"", synthetic_description(), Device())


def test_closing_gives_everything_back_and_may_be_repeated() -> None:
    card = Card(run=RunSettings(cuda_graph=True))
    runner = card.runner()
    for _ in range(3):
        runner.infer(images(3, 8, 8))
    assert card.device.memory
    runner.close()
    runner.close()
    assert not card.device.memory
    assert card.device.entered == 0


def test_graph_replay_gives_the_same_images_and_is_kept_only_where_faster() -> None:
    card = Card(run=RunSettings(cuda_graph=True))
    batch = images(2, 8, 8)
    with card.runner() as runner:
        for _ in range(6):
            assert np.abs(runner.infer(batch).astype(int) - expected(batch)).max() <= LEVEL
        ratio = runner.info.details["cuda_graph_ratio"]
        (graph,) = card.device.graphs
        assert graph.freed == (ratio >= 1)
        runner.infer(images(2, 32, 32))  # larger buffers: what was captured holds old addresses
        assert np.abs(runner.infer(batch).astype(int) - expected(batch)).max() <= LEVEL


def test_rtx_captures_by_itself_and_keeps_its_kernels(tmp_path: Path) -> None:
    path = tmp_path / "kernels"
    path.write_bytes(b"old")
    saved: dict[Path, bytes] = {}
    run = RunSettings(cuda_graph=True, specialization="eager")
    card = Card(backend="tensorrt-rtx", run=run, cache=path)
    with card.runner(save=saved.__setitem__) as runner:
        runner.infer(images(1, 8, 8))
        (config,) = card.engine.configs
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert config.cuda_graph_strategy == "whole"
        assert config.cache is not None
        assert runner.info.details["specialization"] == "eager"
        assert not card.device.graphs
    assert saved == {path: b"old+"}


def test_lanes_share_one_engine() -> None:
    card = Card()
    first, second = card.runner(), card.runner()
    batch = images(2, 8, 8)
    assert np.array_equal(first.infer(batch), second.infer(batch))
    first.close()
    assert second.infer(batch).shape == (2, 8 * SCALE, 8 * SCALE, 3)
    second.close()
