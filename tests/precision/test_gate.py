"""The gate: what it measures, when it says no, and whom it names."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image
from synthetic import synthetic_description, synthetic_model

from espan_deploy.description import description_from_metadata
from espan_deploy.errors import InputError, VerificationError
from espan_deploy.pixels import with_pixels
from espan_deploy.precision.breakdown import sound_images
from espan_deploy.precision.gate import Upscaler, compare, graph_upscaler, runner_upscaler
from espan_deploy.precision.half import HALF_MAX, to_half
from espan_deploy.precision.images import MAX_SIDE, VerifyImage, fitted, generated_images, load_images
from espan_deploy.precision.keep import GROUP, half_within_budget, layer_errors, layers_beyond_half
from espan_deploy.recipes import Budget

SCALE = 4
ESPAN_BUDGET = Budget(min_psnr_db=55.0, max_truth_drop_db=0.01)


def nearest(low: np.ndarray) -> np.ndarray:
    return low.repeat(SCALE, 0).repeat(SCALE, 1).astype(np.float64)


def off_by(levels: float, share: float = 1.0) -> Upscaler:
    def upscale(low: np.ndarray) -> np.ndarray:
        result = nearest(low // 2)
        result.reshape(-1)[: round(result.size * share)] += levels
        return result

    return upscale


@pytest.fixture(scope="module")
def images() -> list[VerifyImage]:
    return generated_images(SCALE)


def overflowing() -> onnx.ModelProto:
    """Two layers, the first of which makes values of some 1e5."""
    return with_pixels(synthetic_model(gain=2e4), synthetic_description(), "uint8")


DESCRIBED = replace(synthetic_description(), pixels="uint8")


def test_equal_outputs_are_infinitely_close(images: list[VerifyImage]) -> None:
    measured = compare(off_by(0), off_by(0), images)
    assert measured.psnr_db == math.inf
    assert (measured.largest_error, measured.off_by_one, measured.off_by_more, measured.nonfinite) == (0, 0, 0, 0)
    assert measured.truth_drop_db == 0
    assert not measured.violations(Budget())
    assert json.loads(json.dumps(measured.to_dict(), allow_nan=False))["psnr_db"] is None


def test_one_level_everywhere_is_48_db(images: list[VerifyImage]) -> None:
    measured = compare(off_by(0), off_by(1), images)
    assert measured.psnr_db == pytest.approx(20 * math.log10(255))
    assert (measured.largest_error, measured.off_by_one, measured.off_by_more) == (1, 1.0, 0.0)


def test_each_part_of_the_budget_is_held(images: list[VerifyImage]) -> None:
    measured = compare(off_by(0), off_by(3, share=0.1), images)
    assert measured.off_by_more == pytest.approx(0.1, abs=1e-3)
    lenient = Budget(min_psnr_db=0, max_truth_drop_db=99, max_share_off_by_more=1)
    assert not measured.violations(lenient)
    for change, said in (
        ({"min_psnr_db": 99.0}, "at least 99 wanted"),
        ({"max_share_off_by_more": 0.0}, "more than one level off"),
        ({"max_truth_drop_db": -99.0}, "lost against the truth"),
        ({"max_nonfinite": -1}, "not finite"),
    ):
        (problem,) = measured.violations(replace(lenient, **change))
        assert said in problem


def test_what_is_not_finite_is_counted_and_comes_out_black(images: list[VerifyImage]) -> None:
    def broken(low: np.ndarray) -> np.ndarray:
        result = nearest(low)
        result[0, 0] = np.nan
        return result

    measured = compare(nearest, broken, images)
    assert measured.nonfinite == 3 * len(images)
    assert measured.violations(Budget(min_psnr_db=0, max_share_off_by_more=1, max_truth_drop_db=99))


def test_what_is_not_finite_in_fp32_either_is_not_counted(images: list[VerifyImage]) -> None:
    """Some networks break down on noise of themselves."""

    def broken(low: np.ndarray) -> np.ndarray:
        result = nearest(low)
        result[0, 0] = np.inf
        return result

    assert compare(broken, broken, images).nonfinite == 0
    assert compare(broken, nearest, images).nonfinite == 0


def test_images_on_which_fp32_breaks_down_are_left_out_unless_it_does_on_all(images: list[VerifyImage]) -> None:
    def broken_on(names: set[str]) -> Upscaler:
        by_bytes = {image.low.tobytes(): image.name for image in images}
        return lambda low: nearest(low) * (1e6 if by_bytes[low.tobytes()] in names else 1)

    calm = [image.name for image in images if not image.stress]
    sound, levels, (note,) = sound_images(broken_on({calm[0]}), images)
    assert [image.name for image in sound] == [image.name for image in images if image.name != calm[0]]
    assert len(levels) == len(sound)
    assert note.endswith(f": {calm[0]}")
    sound, _, notes = sound_images(broken_on(set(calm)), images)
    assert (sound, notes) == (list(images), [])


def test_stress_images_must_be_finite_and_count_nowhere_else(images: list[VerifyImage]) -> None:
    calm = [image for image in images if not image.stress]
    assert len(calm) == len(images) - 1
    assert compare(off_by(0), off_by(9), images).values == compare(off_by(0), off_by(9), calm).values


def test_generated_images_are_the_same_every_time_and_fit_their_truths(images: list[VerifyImage]) -> None:
    for first, second in zip(images, generated_images(SCALE), strict=True):
        assert np.array_equal(first.low, second.low)
        assert first.low.dtype == np.uint8
        if first.high is not None:
            assert first.high.shape == (first.low.shape[0] * SCALE, first.low.shape[1] * SCALE, 3)
    assert sum(image.high is not None for image in images) >= 5


def test_a_folder_of_pairs_is_paired_by_order_and_cropped(tmp_path: Path) -> None:
    for name in ("LR", "HR"):
        (tmp_path / name).mkdir()
    low = np.random.default_rng(0).integers(0, 256, (20, MAX_SIDE + 10, 3), np.uint8)
    Image.fromarray(low).save(tmp_path / "LR" / "a_x4.png")
    Image.fromarray(low.repeat(SCALE, 0).repeat(SCALE, 1)).save(tmp_path / "HR" / "a.png")
    (image,) = load_images(tmp_path, SCALE)
    assert image.low.shape == (20, MAX_SIDE, 3)
    assert image.high is not None
    assert np.array_equal(image.high, image.low.repeat(SCALE, 0).repeat(SCALE, 1))
    (tmp_path / "HR" / "b.png").write_bytes((tmp_path / "HR" / "a.png").read_bytes())
    with pytest.raises(InputError, match="expected pairs"):
        load_images(tmp_path, SCALE)


def test_images_are_fitted_to_what_a_model_takes(images: list[VerifyImage]) -> None:
    for image in fitted(images, SCALE, height=(48, 48), width=(100, 100)):
        assert image.low.shape == (48, 100, 3)
        assert image.high is None  # 80 columns were repeated to 100
    for image in fitted(images, SCALE, width=(1, 70), multiple=8):
        assert image.low.shape == (64, 64, 3)
        assert image.high is None or image.high.shape == (64 * SCALE, 64 * SCALE, 3)


def test_bad_verify_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        load_images(tmp_path / "missing", SCALE)
    with pytest.raises(InputError, match="holds no image"):
        load_images(tmp_path, SCALE)
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read"):
        load_images(tmp_path, SCALE)
    for name, side in (("LR", 8), ("HR", 40)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (side, side)).save(tmp_path / name / "x.png")
    with pytest.raises(InputError, match="expected 4 times"):
        load_images(tmp_path, SCALE)


def test_a_sound_network_passes(images: list[VerifyImage]) -> None:
    model = with_pixels(synthetic_model(), synthetic_description(), "uint8", guard=True)
    report = half_within_budget(model, DESCRIBED, images)
    assert report.kept == ()
    assert report.comparison.psnr_db > Budget().min_psnr_db
    json.dumps(report.to_dict(), allow_nan=False)


def test_float_pixels_and_bytes_measure_alike(images: list[VerifyImage]) -> None:
    for pixels in ("float32", "float16"):
        described = replace(synthetic_description(), pixels=pixels, color_order="BGR")
        model = with_pixels(synthetic_model(), synthetic_description(), pixels)  # type: ignore[arg-type]
        assert compare(graph_upscaler(model, described), graph_upscaler(model, described), images).nonfinite == 0


def test_overflow_fails_with_figures_and_names_the_layer(images: list[VerifyImage]) -> None:
    with pytest.raises(VerificationError) as caught:
        half_within_budget(overflowing(), DESCRIBED, images)
    error = caught.value
    assert error.exit_code == 3
    assert "not finite" in error.message
    assert "w1 (its values reach" in error.message
    assert "--keep-fp32 w1" in error.hint


def test_auto_keeps_what_must_be_kept_and_nothing_else(images: list[VerifyImage]) -> None:
    said: list[str] = []
    report = half_within_budget(overflowing(), DESCRIBED, images, keep_fp32="auto", progress=said.append)
    assert set(report.kept) <= {"w1", "w2"}
    assert "w1" in report.kept
    assert not report.comparison.violations(Budget())
    for name in report.kept:  # every one of them is needed
        fewer = [kept for kept in report.kept if kept != name]
        with pytest.raises(VerificationError):
            half_within_budget(overflowing(), DESCRIBED, images, keep_fp32=fewer)
    assert not any("measuring layer" in text for text in said)  # what overflows is seen in one run
    assert report.sensitivity[0].layer == "w1"
    assert report.sensitivity[0].squared_error == math.inf


def test_auto_measures_every_layer_where_none_overflows(images: list[VerifyImage]) -> None:
    model = with_pixels(synthetic_model(), synthetic_description(), "uint8")
    exact = Budget(min_psnr_db=math.inf)
    said: list[str] = []
    report = half_within_budget(model, DESCRIBED, images, keep_fp32="auto", budget=exact, progress=said.append)
    assert report.kept
    assert report.comparison.psnr_db == math.inf
    assert sum("measuring layer" in text for text in said) == 3


def test_layers_beyond_half_make_or_read_what_fp16_does_not_hold(images: list[VerifyImage]) -> None:
    beyond = layers_beyond_half(overflowing(), DESCRIBED, images)
    assert [entry.layer for entry in beyond] == ["w1", "w2"]
    assert all(HALF_MAX < entry.peak < math.inf for entry in beyond)
    sound = with_pixels(synthetic_model(), synthetic_description(), "uint8")
    assert layers_beyond_half(sound, DESCRIBED, images) == ()


def test_auto_keeps_nothing_where_nothing_is_needed(images: list[VerifyImage]) -> None:
    model = with_pixels(synthetic_model(), synthetic_description(), "uint8")
    assert half_within_budget(model, DESCRIBED, images, keep_fp32="auto").kept == ()


def test_auto_gives_up_where_fp32_itself_is_outside(images: list[VerifyImage]) -> None:
    model = with_pixels(synthetic_model(), synthetic_description(), "uint8")
    with pytest.raises(VerificationError, match="no set of layers"):
        half_within_budget(model, DESCRIBED, images, keep_fp32="auto", budget=Budget(max_nonfinite=-1))


def test_layer_errors_are_sorted_and_complete(images: list[VerifyImage]) -> None:
    model = with_pixels(synthetic_model(), synthetic_description(), "uint8")
    errors = layer_errors(model, DESCRIBED, images)
    assert {entry.layer for entry in errors} == {"input", "w1", "w2"}
    assert [e.squared_error for e in errors] == sorted((e.squared_error for e in errors), reverse=True)
    assert all(entry.peak > 0 for entry in errors)


def with_a_quiet_branch(model: onnx.ModelProto, layers: int) -> onnx.ModelProto:
    """The features "g" go through as many layers more, 1e-6 of the result of which is added to them."""
    nodes = list(model.graph.node)
    eye = np.eye(8, dtype=np.float32)[:, :, None, None]
    names = ["g", *(f"q{index}" for index in range(layers))]
    chain = [
        helper.make_node("Conv", [source, f"{target}.weight"], [target]) for source, target in itertools.pairwise(names)
    ]
    chain += [helper.make_node("Mul", [names[-1], "small"], ["r"]), helper.make_node("Add", ["g", "r"], ["t"])]
    second = next(index for index, node in enumerate(nodes) if node.input[0] == "g")
    nodes[second].input[0] = "t"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:second], *chain, *nodes[second:]])
    model.graph.initializer.extend(numpy_helper.from_array(eye, f"{name}.weight") for name in names[1:])
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e-6, np.float32), "small"))
    return model


def test_layers_that_cost_little_are_measured_together(images: list[VerifyImage]) -> None:
    model = with_pixels(with_a_quiet_branch(synthetic_model(), 2 * GROUP), synthetic_description(), "uint8")
    said: list[str] = []
    errors = layer_errors(model, DESCRIBED, images, progress=said.append)
    assert len(errors) == len({entry.layer for entry in errors}) == 2 * GROUP + 3
    # input, w1, q0 .. q5 | q6 .. q13 | q14, q15 with the sum, w2: the second group alone is quiet.
    assert sum("measuring layers" in text for text in said) == 3
    one_by_one = {text.rpartition(": ")[2] for text in said if "measuring layer " in text}
    assert {"w1", "w2"} <= one_by_one
    assert not one_by_one & {f"q{index}" for index in range(6, 14)}
    assert {entry.layer for entry in errors[:2]} <= {"w1", "w2", "input", "q15"}
    assert len({entry.squared_error for entry in errors if entry.layer in ("q6", "q13")}) == 1


def test_a_runner_is_compared_like_a_graph(images: list[VerifyImage], tmp_path: Path) -> None:
    from espan_deploy import backends
    from espan_deploy.backends.model import read_model

    path = tmp_path / "tiny.onnx"
    onnx.save(synthetic_model(), path)
    entry = backends.get("onnxruntime")
    if entry.unavailable_reason():
        pytest.skip(str(entry.unavailable_reason()))
    with entry.open(read_model(path), threads=1) as runner:
        reference = graph_upscaler(synthetic_model(), synthetic_description())
        measured = compare(reference, runner_upscaler(runner), images)
    assert measured.largest_error <= 1


def espan_model(checkpoint: Path) -> onnx.ModelProto:
    from espan_deploy.deploy import deploy_file

    return deploy_file(checkpoint).model


@pytest.mark.shared
@pytest.mark.parametrize("pixels", ["uint8", "float32", "float16"])
def test_espan_in_fp16_passes_on_set5_and_set14(
    pixels: str, espan: onnx.ModelProto, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = description_from_metadata({entry.key: entry.value for entry in espan.metadata_props})
    assert described is not None
    reference = graph_upscaler(espan, described)
    half = to_half(with_pixels(espan, described, pixels)).model  # type: ignore[arg-type]
    candidate = replace(described, pixels=pixels, precision="fp16")
    for name in ("Set5", "Set14"):
        shown = load_images(shared / "images" / name, described.scale)
        measured = compare(reference, graph_upscaler(half, candidate), shown)
        with capsys.disabled():
            print(f"\nESPAN FP16, {pixels} pixels, {name}: {measured.summary()}")
        assert measured.truth_db is not None
        assert not measured.violations(ESPAN_BUDGET)


@pytest.fixture(scope="module")
def espan(espan_checkpoint: Path) -> onnx.ModelProto:
    return espan_model(espan_checkpoint)


@pytest.mark.shared
def test_auto_rescues_an_espan_whose_block_overflows(espan: onnx.ModelProto, images: list[VerifyImage]) -> None:
    described = description_from_metadata({entry.key: entry.value for entry in espan.metadata_props})
    assert described is not None
    broken = onnx.ModelProto()
    broken.CopyFrom(espan)
    # The sum before the tail is linear up to the end: a factor there, and its inverse behind, change nothing.
    factor = 4096.0
    for name in [t.name for t in espan.graph.initializer if "tea_conv_cat" in t.name]:
        _scale(broken, name, factor)
    _scale(broken, "tea_upsampler.0.eval_conv.weight", 1 / factor)
    with pytest.raises(VerificationError):
        half_within_budget(broken, described, images)
    report = half_within_budget(broken, described, images, keep_fp32="auto")
    assert 1 <= len(report.kept) <= 3


def _scale(model: onnx.ModelProto, name: str, factor: float) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
