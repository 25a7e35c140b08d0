"""The stages together: what comes out, in which calls and tiles."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy_engine import HALO, SCALE, NumpyRunner, Setup, photo, statuses, upscaled
from PIL import Image
from synthetic import synthetic_description

from espan_deploy.backends.base import Images
from espan_deploy.errors import InferenceError


def test_every_image_is_upscaled_and_named_as_it_was(setup: Setup) -> None:
    pixels = {f"{i % 3}/{i}.png": photo(setup.source / f"{i % 3}/{i}.png", 10 + i % 4, 12, i) for i in range(20)}
    reports = setup.run(NumpyRunner(), NumpyRunner(), decoders=2, encoders=2)
    assert statuses(reports) == ["done"] * 20
    for name, image in pixels.items():
        assert np.array_equal(setup.result(name), upscaled(image[None])[0])
    assert all(set(report.stage_ms) == {"decode", "infer", "encode", "publish", "end_to_end"} for report in reports)
    assert all(0 < report.stage_ms["end_to_end"] < 60_000 for report in reports)


def test_images_of_one_shape_share_calls(setup: Setup) -> None:
    for i in range(12):
        photo(setup.source / f"{i:02}.png", 8, 8 + i % 2, i)
    gate = threading.Event()

    def wait(_: Images) -> None:
        gate.wait(5)

    runner = NumpyRunner(wait)
    threading.Timer(0.5, gate.set).start()
    reports = setup.run(runner, batch=4)
    assert statuses(reports) == ["done"] * 12
    assert sum(shape[0] for shape in runner.shapes) == 12
    assert max(shape[0] for shape in runner.shapes) == 4


@pytest.mark.parametrize("tile", [5, 9, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_tiles_equal_the_whole(setup: Setup, tile: int, suffix: str) -> None:
    pixels = photo(setup.source / f"a.{suffix}", 41, 53)
    (report,) = setup.run(NumpyRunner(), NumpyRunner(), tile=tile, encoders=2)
    assert report.status == "done"
    assert report.tiles > 1
    assert np.array_equal(setup.result("a.png"), upscaled(pixels[None])[0])


@pytest.mark.parametrize(
    ("takes", "padded"), [({"size_multiple": 8}, (16, 24)), ({"min_size": 15}, (15, 18)), ({"min_size": 20}, (20, 20))]
)
def test_sizes_that_the_network_does_not_take_are_padded(
    setup: Setup, takes: dict[str, int], padded: tuple[int, int]
) -> None:
    photo(setup.source / "a.png", 13, 18)
    runner = NumpyRunner()
    runner.description = synthetic_description(halo=HALO, **takes)
    assert statuses(setup.run(runner)) == ["done"]
    assert runner.shapes == [(1, *padded, 3)]
    assert setup.result("a.png").shape == (13 * SCALE, 18 * SCALE, 3)


def seeing_everything() -> NumpyRunner:
    runner = NumpyRunner()
    runner.description = synthetic_description(
        halo=None, local_halo=HALO, halo_reason="ReduceMean sees the whole image"
    )
    return runner


def test_a_network_that_sees_everything_is_cut_approximately_and_says_so_once(setup: Setup) -> None:
    for name in ("a.png", "b.png"):
        photo(setup.source / name, 200, 260)
    reports = setup.run(seeing_everything(), max_pixels=900)
    assert statuses(reports) == ["done", "done"]
    assert all(report.tiles > 1 for report in reports)
    assert "ReduceMean sees the whole image" in setup.last.remark
    assert "they differ from the whole by nothing" in setup.last.remark  # it sees two pixels, whatever it says
    assert setup.last.remark.count("png") == 1


def test_an_image_that_fits_is_not_cut_and_nothing_is_said(setup: Setup) -> None:
    photo(setup.source / "a.png", 60, 60)
    assert statuses(setup.run(seeing_everything())) == ["done"]
    assert setup.last.remark == ""


def test_memory_that_runs_out_cuts_also_what_sees_everything_and_says_so(setup: Setup) -> None:
    pixels = photo(setup.source / "a.png", 50, 70)
    runner = seeing_everything()

    def fail(images: Images) -> None:
        if images.shape[1] * images.shape[2] > 900:
            raise InferenceError("could not allocate 3 GB")

    runner.fail = fail
    assert statuses(setup.run(runner)) == ["done"]
    assert np.array_equal(setup.result("a.png"), upscaled(pixels[None])[0])  # it sees two pixels, whatever it says
    assert "ReduceMean sees the whole image" in setup.last.remark
    assert "because memory ran out" in setup.last.remark


@pytest.mark.parametrize(("height", "width"), [(50, 70), (24, 32), (20, 70), (9, 11)])
def test_a_model_of_one_size_takes_tiles_of_that_size(setup: Setup, height: int, width: int) -> None:
    pixels = photo(setup.source / "a.png", height, width)
    runner = NumpyRunner()
    runner.description = synthetic_description(halo=HALO, fixed_size=(24, 32))
    assert statuses(setup.run(runner, max_pixels=100)) == ["done"]
    assert {shape[1:3] for shape in runner.shapes} == {(24, 32)}
    if height >= 24:  # smaller ones are padded, and this network sees the padding
        assert np.array_equal(setup.result("a.png"), upscaled(pixels[None])[0])


def test_a_model_of_one_size_has_no_smaller_tiles_when_memory_runs_out(setup: Setup) -> None:
    def fail(_: Images) -> None:
        raise InferenceError("out of memory")

    photo(setup.source / "a.png", 24, 32)
    runner = NumpyRunner(fail)
    runner.description = synthetic_description(halo=HALO, fixed_size=(24, 32))
    (report,) = setup.run(runner)
    assert "not enough memory for 24x32, the only size of this model" in report.error


def test_grey_alpha_and_sixteen_bits_go_through(setup: Setup) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(grey).save(setup.source / "grey.png")
    alpha = np.full((9, 9, 4), 200, np.uint8)
    alpha[..., 3] = rng.integers(1, 256, (9, 9))
    Image.fromarray(alpha).save(setup.source / "alpha.png")
    deep = rng.integers(0, 65536, (9, 9), dtype=np.uint16)
    Image.fromarray(deep).save(setup.source / "deep.png")
    assert statuses(setup.run()) == ["done"] * 3
    assert np.abs(setup.result("grey.png") - upscaled(grey[None, ..., None])[0, ..., 0].astype(int)).max() <= 1
    expected = upscaled(alpha[None, ..., :3])[0]
    assert np.abs(setup.result("alpha.png")[..., :3].astype(int) - expected).max() <= 1
    mask = Image.fromarray(alpha[..., 3]).resize((36, 36), Image.Resampling.BICUBIC)
    assert np.array_equal(setup.result("alpha.png")[..., 3], mask)
    result = np.asarray(Image.open(setup.output / "deep.png"))
    assert result.dtype == np.uint16
    wide = upscaled(deep[None, ..., None].astype(np.float64))[0, ..., 0]
    assert np.abs(result - wide).max() <= 1


@pytest.mark.parametrize("tile", [9, 16])
def test_alpha_has_no_seams(setup: Setup, tile: int) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (41, 53, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(setup.source / "a.png")
    assert statuses(setup.run(tile=tile)) == ["done"]
    mask = Image.fromarray(pixels[..., 3]).resize((53 * 4, 41 * 4), Image.Resampling.BICUBIC)
    assert np.array_equal(setup.result("a.png")[..., 3], mask)


def test_flat_alpha_stays_flat(setup: Setup) -> None:
    for value in (255, 7):
        pixels = np.full((9, 9, 4), value, np.uint8)
        Image.fromarray(pixels).save(setup.source / f"{value}.png")
    assert statuses(setup.run()) == ["done"] * 2
    for value in (255, 7):
        assert (setup.result(f"{value}.png")[..., 3] == value).all()
