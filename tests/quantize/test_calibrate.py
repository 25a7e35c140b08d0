"""From a float model to one within its budget, or to an error that says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from synthetic import synthetic_description, synthetic_model

from espan_deploy import backends
from espan_deploy.backends.base import Runner
from espan_deploy.backends.model import ModelFile
from espan_deploy.description import description_from_metadata
from espan_deploy.errors import CalibrationError, ExportError, VerificationError
from espan_deploy.precision.images import VerifyImage, generated_images
from espan_deploy.precision.layers import name_nodes
from espan_deploy.quantize.arithmetic import CODE_RANGE
from espan_deploy.quantize.calibrate import int8_within_budget
from espan_deploy.quantize.layers import quantizable
from espan_deploy.quantize.learn import learn
from espan_deploy.quantize.pictures import (
    ADDED,
    REDUCED_PAGES,
    CalibrationPictures,
    generated_pictures,
    load_pictures,
    text_page,
)
from espan_deploy.quantize.recipe import CalibrationRecipe, Learning
from espan_deploy.quantize.reconstruct import reconstruct
from espan_deploy.quantize.report import Int8Report
from espan_deploy.recipes import Budget

RECIPE = CalibrationRecipe(
    "test", "A test's", learning=Learning(steps=4, crops=2, side=24), budget=Budget(38.0, 0.05, 1.0)
)


@pytest.fixture(scope="module")
def pictures() -> CalibrationPictures:
    return generated_pictures(2)


def calibrated(pictures: CalibrationPictures, recipe: CalibrationRecipe = RECIPE, **options: object) -> Int8Report:
    return int8_within_budget(
        synthetic_model(),
        synthetic_description(),
        pictures,
        judged(),
        recipe,
        **options,  # type: ignore[arg-type]
    )


@cache
def judged() -> list[VerifyImage]:
    return generated_images(4)[1:4]


@pytest.fixture(scope="module")
def report(pictures: CalibrationPictures) -> Int8Report:
    return calibrated(pictures, float_sha256="abc")


def test_the_file_says_what_it_is(report: Int8Report) -> None:
    found = description_from_metadata({entry.key: entry.value for entry in report.model.metadata_props})
    assert found is not None
    assert (found.precision, found.float_sha256) == ("int8", "abc")
    assert sum(node.op_type == "QuantizeLinear" for node in report.model.graph.node) == 2


def test_the_report_says_what_was_decided_and_why(report: Int8Report) -> None:
    document = report.to_dict()
    assert [each["decision"] for each in document["layers"]] == ["int8", "int8"]
    assert sum(each["error_share"] for each in document["layers"]) == pytest.approx(1)
    assert document["learnt"]["steps"] == 4
    assert any("generated" in note for note in document["notes"])
    assert set(document["scheme"]) == {"values", "weights"}


def test_the_same_pictures_give_the_same_bytes(report: Int8Report, pictures: CalibrationPictures) -> None:
    again = calibrated(pictures, float_sha256="abc")
    assert again.model.SerializeToString(deterministic=True) == report.model.SerializeToString(deterministic=True)


def test_learning_mends_scales_that_are_wrong() -> None:
    model = synthetic_model()
    name_nodes(model.graph)
    convolutions, rng = quantizable(model.graph)[0], np.random.default_rng(0)
    images = rng.random((4, 3, 24, 24), np.float32)
    scheme = reconstruct(model, convolutions, images)
    spoilt = {
        name: replace(weight, scale=weight.scale * rng.choice([0.99, 1.01], weight.scale.shape))
        for name, weight in scheme.weights.items()
    }
    learnt = learn(model, convolutions, replace(scheme, weights=spoilt), lambda: images, steps=200)
    assert learnt.after_db > learnt.before_db + 1.0
    assert all(np.array_equal(learnt.scheme.weights[name].codes, spoilt[name].codes) for name in spoilt)


def test_layers_named_stay_in_float(pictures: CalibrationPictures) -> None:
    kept = calibrated(pictures, keep=("w1",))
    assert len(kept.kept) == 1
    assert sum(node.op_type == "QuantizeLinear" for node in kept.model.graph.node) == 1
    with pytest.raises(ExportError, match="w3"):
        calibrated(pictures, keep=("w3",))


def test_what_a_tight_budget_needs_is_found(pictures: CalibrationPictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations in five bits, so that each layer matters: one in float is enough for the budget, none is not."""
    monkeypatch.setitem(CODE_RANGE, "signed", (-15, 15))
    coarse = replace(RECIPE, learning=Learning(steps=0), activations="signed", budget=Budget(0.0, 20.0, 1.0))
    both = calibrated(pictures, coarse).comparison.psnr_db
    found = calibrated(pictures, replace(coarse, budget=Budget(both + 0.5, 20.0, 1.0)))
    assert len(found.kept) == 1
    assert found.comparison.psnr_db >= both + 0.5


def test_a_tight_budget_reads_twice_where_that_is_cheaper(
    pictures: CalibrationPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODE_RANGE, "signed", (-15, 15))
    coarse = replace(RECIPE, activations="signed", budget=Budget(0.0, 20.0, 1.0), keep=("w1",), read_twice=True)
    plain = calibrated(pictures, coarse).comparison.psnr_db
    found = calibrated(pictures, replace(coarse, budget=Budget(plain + 1.0, 20.0, 1.0)))
    assert (len(found.kept), len(found.twice)) == (1, 1)
    assert [each["decision"] for each in found.to_dict()["layers"]] == ["twice"]
    assert found.to_dict()["read_twice"] == list(found.twice)
    assert sum(node.op_type == "QuantizeLinear" for node in found.model.graph.node) == 2


class Engine:
    """An engine on a processor on which sums of bytes overflow, or do not."""

    def __init__(self, *, overflows: bool) -> None:
        self.overflows = overflows

    def unavailable_reason(self) -> None:
        return None

    def open(self, file: ModelFile, *, precision: str) -> Runner:
        runner = backends.get("onnxruntime").open(file, precision=precision)
        if self.overflows:
            exact = runner.infer
            runner.infer = lambda pixels: exact(pixels) * np.float32(0.9)  # type: ignore[method-assign]
        return runner


@pytest.mark.parametrize("overflows", [True, False])
def test_an_engine_that_computes_something_else_does_not_judge(
    pictures: CalibrationPictures, monkeypatch: pytest.MonkeyPatch, overflows: bool
) -> None:
    real = backends.get
    monkeypatch.setattr(backends, "get", lambda name: Engine(overflows=overflows) if name == "openvino" else real(name))

    made = calibrated(pictures, replace(RECIPE, timed_in="openvino"))

    assert made.comparison.psnr_db > 38
    assert overflows == any("openvino is 2" in note and "ONNX Runtime judges" in note for note in made.notes)


def test_a_budget_that_cannot_be_met_names_figures_and_layers(pictures: CalibrationPictures) -> None:
    with pytest.raises(VerificationError, match=r"dB from FP32.*Worst layers: .*of the error") as caught:
        calibrated(pictures, replace(RECIPE, budget=Budget(120.0, 0.0, 0.0)), keep=("w1",))
    assert "--budget-db" in caught.value.hint


def test_a_network_whose_output_is_no_picture_is_not_calibrated(pictures: CalibrationPictures) -> None:
    with pytest.raises(CalibrationError, match="outside black and white") as caught:
        int8_within_budget(synthetic_model(value_range=255.0), synthetic_description(), pictures, judged()[:1], RECIPE)
    assert "--value-range" in caught.value.hint


def test_nothing_to_quantise(pictures: CalibrationPictures) -> None:
    model = synthetic_model()
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
            del node.attribute[0]
    with pytest.raises(CalibrationError, match="no convolution"):
        int8_within_budget(model, synthetic_description(), pictures, judged()[:1], RECIPE)


def test_what_cannot_be_quantised_stays_in_float_and_is_said(pictures: CalibrationPictures) -> None:
    model = synthetic_model()
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    del last.attribute[:]
    last.attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    made = int8_within_budget(model, synthetic_description(), pictures, judged(), RECIPE)
    assert any("in float: 1 nodes: its padding" in note for note in made.to_dict()["notes"])
    assert len(made.scheme.weights) == 1


def folder_of(path: Path, pictures: list[np.ndarray]) -> Path:
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{index:02}.png")
    return path


def photographs(count: int, side: int = 80) -> list[np.ndarray]:
    return list(np.random.default_rng(6).integers(0, 256, (count, side, side, 3), np.uint8))


def test_a_folder_gives_pictures_and_holds_some_out_with_their_truths(tmp_path: Path) -> None:
    noise = [np.kron(each[:4, :4], np.ones((20, 20, 1), np.uint8)) for each in photographs(20)]
    found = load_pictures(folder_of(tmp_path, noise), 4)
    assert (len(found.pictures), len(found.held_out), found.notes) == (17, 3, ())
    assert all(each.high is not None and each.high.shape == (80, 80, 3) for each in found.held_out)
    assert all(each.low.shape == (20, 20, 3) for each in found.held_out)


def test_few_and_alike_and_unusable_are_said(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "alike").mkdir()
    few = folder_of(tmp_path / "few", [*photographs(2), *photographs(1, side=20)])
    (few / "broken.png").write_bytes(b"no picture")
    notes = " ".join(load_pictures(few, 4).notes)
    assert "cannot be read" in notes
    assert "smaller than" in notes
    assert "only" in notes
    alike = folder_of(tmp_path / "alike", photographs(1) * 20)
    assert any("all alike" in note for note in load_pictures(alike, 4).notes)


def test_no_usable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_pictures(tmp_path, 4)
    with pytest.raises(CalibrationError, match="no folder"):
        load_pictures(tmp_path / "absent", 4)


def test_crops_have_the_size_asked_for_whatever_the_pictures(pictures: CalibrationPictures) -> None:
    crops = pictures.crops(np.random.default_rng(0), 12, 48)
    assert crops.shape == (12, 48, 48, 3)
    small = replace(pictures, pictures=(photographs(1, side=30)[0],))
    assert small.crops(np.random.default_rng(0), 3, 48).shape == (3, 48, 48, 3)
    assert text_page(np.random.default_rng(1), 48).shape == (48, 48, 3)


def test_every_kind_is_among_what_ranges_are_found_on(
    pictures: CalibrationPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[str | None] = []

    def crop(_self: CalibrationPictures, kind: str | None, _rng: object, side: int) -> np.ndarray:
        kinds.append(kind)
        return np.zeros((side, side, 3), np.uint8)

    monkeypatch.setattr(CalibrationPictures, "_crop", crop)
    assert len(pictures.spread_crops(np.random.default_rng(0), 24, 32)) == 24
    assert set(kinds) == {*ADDED, None}
    assert kinds.count(None) > 12
    assert REDUCED_PAGES not in pictures.without(REDUCED_PAGES).shares
