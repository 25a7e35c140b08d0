"""The gate of graphs that came in INT8, and what a GPU gets of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from quantising import quantised
from synthetic import synthetic_description, synthetic_model

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.backends.model import ModelFile
from espan_deploy.engine.build import graph_from_onnx
from espan_deploy.errors import ExportError, VerificationError
from espan_deploy.precision.codes import budget_of, codes_within_budget, sound_images
from espan_deploy.precision.gate import graph_upscaler
from espan_deploy.precision.images import VerifyImage
from espan_deploy.quantize.recipe import calibration_folder
from espan_deploy.recipes import load_recipe

GREY = VerifyImage("grey", np.full((24, 24, 3), 120, np.uint8))


def int8_file(*, signed: bool) -> ModelFile:
    model = quantised(synthetic_model(described=False), signed=signed)
    described = synthetic_description(precision="int8")
    onnx.helper.set_model_props(model, described.to_metadata())
    return ModelFile(Path("foreign.onnx"), model.SerializeToString(), described)


def test_images_on_which_floats_break_down_are_left_out_and_said() -> None:
    broken = VerifyImage("noise", np.full((24, 24, 3), 5, np.uint8))

    def reference(low: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.where(low == 5, 5000.0, low).astype(np.float64)

    sound, levels, notes = sound_images(reference, [GREY, broken])
    assert [image.name for image in sound] == ["grey"]
    assert len(levels) == 1
    assert notes == ["left out, since FP32 itself breaks down on them: noise"]


def test_a_budget_of_ones_own_asks_for_no_distance() -> None:
    file = int8_file(signed=False)
    model = onnx.load_from_string(file.data)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "g.scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) / np.float32(8), "g.scale"))
    with pytest.raises(VerificationError, match="dB from FP32"):
        codes_within_budget(model, file.description, [GREY])
    comparison, _ = codes_within_budget(model, file.description, [GREY], budget_of(0.5))
    assert comparison.psnr_db < 40


class TestForGpus:
    def test_codes_stay_and_floats_become_fp16(self) -> None:
        graph, gate = graph_from_onnx(int8_file(signed=True), load_recipe("a6000-int8"))
        types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
        scales = {node.input[1] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
        assert {types[scale] for scale in scales} == {TensorProto.FLOAT16}
        assert gate["comparison"]["nonfinite"] == 0

    def test_a_model_in_floats_is_calibrated_for_it(self, tmp_path: Path) -> None:
        """Signed codes without a zero point, FP16 beside them, scales that FP16 holds, and bytes at both ends."""
        quick = tmp_path / "quick.toml"
        text = (calibration_folder() / "tensorrt.toml").read_text()
        quick.write_text(
            text.replace("steps = 60", "steps = 2").replace("max_truth_drop_db = 0.01", "max_truth_drop_db = 2")
        )
        recipe = replace(load_recipe("a6000-int8"), calibration=str(quick))
        floats = synthetic_model(described=False)
        file = ModelFile(Path("tiny.onnx"), floats.SerializeToString(), synthetic_description())
        graph, gate = graph_from_onnx(file, recipe)
        onnx.checker.check_model(graph, full_check=True)
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        quantise = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
        assert {tensors[node.input[2]].dtype for node in quantise} == {np.dtype(np.int8)}
        assert not any(tensors[node.input[2]].any() for node in quantise)
        scales = [tensors[node.input[1]] for node in graph.graph.node if node.op_type.endswith("quantizeLinear")]
        scales += [tensors[node.input[1]] for node in quantise]
        assert {scale.dtype for scale in scales} == {np.dtype(np.float16)}
        assert min(float(scale.min()) for scale in scales) >= float(np.finfo(np.float16).tiny)
        assert not gate["read_twice"]
        ends = [value.type.tensor_type.elem_type for value in (graph.graph.input[0], graph.graph.output[0])]
        assert ends == [TensorProto.UINT8, TensorProto.UINT8]
        image = np.random.default_rng(2).integers(60, 190, (1, 24, 20, 3), np.uint8)
        expected = np.clip(graph_upscaler(floats, synthetic_description())(image[0]), 0, 255)
        got = GraphEvaluator(graph).run(image)[0][0]
        assert np.square(got - expected).mean() < 4.0

    def test_a_recipe_in_another_precision_is_refused(self) -> None:
        with pytest.raises(ExportError, match="is INT8 already, and the recipe asks for fp16"):
            graph_from_onnx(int8_file(signed=True), load_recipe("a6000-fp16"))
