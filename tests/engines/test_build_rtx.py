"""Building with the real TensorRT-RTX, without a GPU: engines, progress, and every way it fails."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from quantising import quantised
from synthetic import synthetic_description, synthetic_model

from espan_deploy.backends.trt_build import BuiltEngine, _build_error, build_engine, profile_shapes
from espan_deploy.backends.trt_module import BuildProgress, Messages, known_capabilities, load_module
from espan_deploy.errors import BackendUnavailableError, EngineBuildError
from espan_deploy.pixels import with_pixels
from espan_deploy.precision.half import to_half
from espan_deploy.recipes import BuildSettings, Profile, Recipe, Span, Target, load_recipe


def half_bytes(pixels: str = "uint8", **settings: Any) -> bytes:
    model = with_pixels(
        synthetic_model(**settings),
        synthetic_description(),
        pixels,  # type: ignore[arg-type]
        guard=pixels == "uint8",
    )
    return to_half(model).model.SerializeToString()


def operator(name: str, domain: str = "", **attributes: Any) -> bytes:
    node = helper.make_node(name, ["input"], ["output"], name="the_odd_one", domain=domain, **attributes)
    shape = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return model.SerializeToString()


@pytest.mark.parametrize("pixels", ["uint8", "float32", "float16"])
def test_an_engine_is_described_from_the_network(rtx: Any, rtx_recipe: Recipe, pixels: str) -> None:
    built = build_engine(rtx, half_bytes(pixels), replace(rtx_recipe, pixels=pixels))  # type: ignore[arg-type]
    assert len(built.data) > 1000
    assert built.backend_version == rtx.__version__
    image, *outputs = built.tensors
    assert (image.name, image.mode, image.dtype) == ("input", "input", pixels)
    assert outputs[0].dtype == pixels
    assert [tensor.name for tensor in outputs[1:]] == (["guard"] if pixels == "uint8" else [])
    channels = 3 if pixels == "uint8" else 1
    assert image.shape[channels] == 3
    assert image.profile is not None
    low, best, high = image.profile
    assert (low[0], best[0], high[0]) == (1, 2, 4)
    assert max(high) == 64
    assert {"float16"} <= {layer.dtype for layer in built.layers}
    assert any(layer.type == "convolution" for layer in built.layers)
    assert built.build_seconds > 0
    assert built.peak_host_mib is None or built.peak_host_mib > 10
    assert built.warnings == ()


def test_progress_is_reported_and_can_stop_the_build(rtx: Any, rtx_recipe: Recipe) -> None:
    seen: list[BuildProgress] = []
    build_engine(rtx, half_bytes(), rtx_recipe, progress=seen.append)
    assert {"Building engine"} <= {progress.phase for progress in seen}
    assert all(0 <= progress.step <= progress.steps for progress in seen)

    def stop(_progress: BuildProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(rtx, half_bytes(), rtx_recipe, progress=stop)


def test_several_targets_in_one_engine(rtx: Any, rtx_recipe: Recipe) -> None:
    target = Target(compute_capability=("8.0", "8.6", "8.9", "12.0"))
    assert build_engine(rtx, half_bytes(), replace(rtx_recipe, target=target)).data


@pytest.mark.parametrize("name", ["Det", "StringNormalizer", "MyOperator"])
def test_an_unsupported_operator_is_named(rtx: Any, rtx_recipe: Recipe, name: str) -> None:
    data = operator(name, domain="mine" if name == "MyOperator" else "")
    with pytest.raises(EngineBuildError) as caught:
        build_engine(rtx, data, replace(rtx_recipe, pixels="float32"))
    assert f"{name} 'the_odd_one'" in caught.value.message
    assert name in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"not onnx at all", half_bytes()[:500]])
def test_what_is_no_onnx_is_refused(rtx: Any, rtx_recipe: Recipe, data: bytes) -> None:
    with pytest.raises(EngineBuildError):
        build_engine(rtx, data, rtx_recipe)


def test_an_unknown_compute_capability_is_answered_with_the_known_ones(rtx: Any, rtx_recipe: Recipe) -> None:
    assert "8.6" in known_capabilities(rtx)
    with pytest.raises(EngineBuildError, match=r"compute capability 9\.0") as caught:
        build_engine(rtx, half_bytes(), replace(rtx_recipe, target=Target(compute_capability=("9.0",))))
    assert "8.6" in caught.value.hint


def test_a_profile_that_the_builder_refuses(rtx: Any, rtx_recipe: Recipe) -> None:
    """Recipes are checked before; the builder's own refusal is translated all the same."""
    wrong = replace(rtx_recipe, profile=Profile(batch=Span(4, 2, 1)))
    with pytest.raises(EngineBuildError, match="MIN<=OPT<=MAX"):
        build_engine(rtx, half_bytes(), wrong)


def test_too_little_workspace_says_what_to_raise(rtx: Any) -> None:
    """The builder checks its scratch memory against the profile's largest shape."""
    recipe = load_recipe("a6000-rtx-fp16")
    model = to_half(synthetic_model()).model.SerializeToString()
    tight = replace(recipe, pixels="float32", build=BuildSettings(workspace_mib=1))
    try:
        build_engine(rtx, model, tight)
    except EngineBuildError as exc:
        assert "workspace_mib" in exc.hint  # noqa: PT017 - whether so small a network fits is the builder's business


@pytest.mark.parametrize("weights", ["refit", "stripped"])
def test_refittable_engines_need_a_gpu_there(rtx: Any, rtx_recipe: Recipe, weights: str) -> None:
    recipe = replace(rtx_recipe, build=BuildSettings(weights=weights))  # type: ignore[arg-type]
    try:
        build_engine(rtx, half_bytes(), recipe)
    except EngineBuildError as exc:
        assert "on a machine with a GPU" in exc.hint  # noqa: PT017 - with a GPU it builds


def test_a_build_error_names_the_layer(rtx_recipe: Recipe) -> None:
    """The longest name that the message holds: "block_1" is not "block_12"."""
    layers = [SimpleNamespace(name=name) for name in ("block_1", "block_12", "")]
    network = SimpleNamespace(num_layers=3, get_layer=layers.__getitem__)
    messages = Messages()
    messages.add("ERROR", "Error Code 10: no implementation for node block_12")
    error = _build_error(network, messages, "TensorRT", rtx_recipe)
    assert "refuses to build at layer 'block_12'" in str(error)


def test_the_gpu_at_hand_is_asked_for(rtx: Any, rtx_recipe: Recipe) -> None:
    try:
        build_engine(rtx, half_bytes(), replace(rtx_recipe, target=Target()))
    except BackendUnavailableError as exc:
        assert exc.exit_code == 5  # noqa: PT017 - with a GPU it builds
        assert "compute_capability" in exc.hint  # noqa: PT017


def as_tensorrt(rtx: Any, recipe: Recipe, **changes: Any) -> BuiltEngine:
    """TensorRT's own path, run on TensorRT-RTX's module, which has the same shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # timing caches do nothing there, and say so
        return build_engine(rtx, half_bytes(), replace(recipe, backend="tensorrt", **changes))


def test_tensorrt_s_own_settings_are_made(rtx: Any, rtx_recipe: Recipe) -> None:
    built = as_tensorrt(rtx, rtx_recipe, build=BuildSettings(optimization_level=2, workspace_mib=512))
    assert built.data
    assert built.timing_cache is not None
    again = replace(rtx_recipe, backend="tensorrt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert build_engine(rtx, half_bytes(), again, timing_cache=built.timing_cache).data
    assert as_tensorrt(rtx, rtx_recipe, build=BuildSettings(timing_cache=False)).timing_cache is None


def test_warnings_are_summarised(rtx: Any, rtx_recipe: Recipe) -> None:
    built = as_tensorrt(rtx, rtx_recipe, target=Target(hardware_compatibility="ampere-plus"))
    assert any("setHardwareCompatibilityLevel" in warning for warning in built.warnings)


def test_a_missing_part_of_the_runtime_is_named(rtx: Any, rtx_recipe: Recipe) -> None:
    with pytest.raises(EngineBuildError, match="libnvinfer_lean"):
        as_tensorrt(rtx, rtx_recipe, target=Target(version_compatible=True))


def test_a_static_model_takes_its_own_size(rtx_recipe: Recipe) -> None:
    shapes = profile_shapes((-1, 48, 40, 3), rtx_recipe)
    assert shapes == ((1, 48, 40, 3), (2, 48, 40, 3), (4, 48, 40, 3))
    with pytest.raises(EngineBuildError, match="the model's width is 65, and the profile asks for 1 to 64"):
        profile_shapes((-1, 48, 65, 3), rtx_recipe)
    with pytest.raises(EngineBuildError, match="channels is 1"):
        profile_shapes((-1, -1, -1, 1), rtx_recipe)


def test_a_module_that_is_not_there_names_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailableError, match="TensorRT is not installed") as caught:
        load_module("tensorrt")
    assert caught.value.exit_code == 5
    assert "espan-deploy[gpu]" in caught.value.hint


def test_messages_are_told_apart() -> None:
    messages = Messages()
    messages.add("WARNING", "twice")
    messages.add("WARNING", "twice")
    messages.add("ERROR", "real")
    messages.add("ERROR", "[checkMacros.cpp::catchCudaError::250] Error Code 1: no driver")
    messages.add("INFO", "[MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 3 MiB, GPU 40 MiB")
    assert messages.summary() == ["twice (x2)"]
    assert messages.explanation() == "real"
    assert messages.allocator_mib == {"cpu": 3, "gpu": 40}
    assert Messages().explanation() == "it gives no reason"


class TestInt8:
    """Codes beside FP16, by the rules that TensorRT's documentation gives for explicit quantisation."""

    def test_symmetric_codes_beside_fp16_are_built(self, rtx: Any, rtx_recipe: Recipe) -> None:
        model = with_pixels(quantised(synthetic_model(), signed=True), synthetic_description(), "uint8", guard=True)
        half = to_half(model).model
        types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
        for node in half.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert types[node.input[1]] == TensorProto.FLOAT16
                assert types[node.input[2]] == TensorProto.INT8
        built = build_engine(rtx, half.SerializeToString(), replace(rtx_recipe, pixels="uint8"))
        assert [layer.dtype for layer in built.layers if layer.type == "quantize"] == ["int8", "int8"]
        assert {layer.dtype for layer in built.layers if layer.type == "convolution"} == {"float16"}

    def test_weights_alone_are_built(self, rtx: Any, rtx_recipe: Recipe) -> None:
        model = quantised(synthetic_model(), signed=True)
        for node in model.graph.node:
            if node.op_type == "Conv":
                node.input[0] = node.input[0].removesuffix(".read")
        codes = {"QuantizeLinear", "DequantizeLinear"}
        kept = [n for n in model.graph.node if n.op_type not in codes or n.name.startswith("w")]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        built = build_engine(rtx, model.SerializeToString(), replace(rtx_recipe, pixels="float32"))
        assert [layer.type for layer in built.layers].count("dequantize") == 2

    def test_a_zero_point_is_refused_with_what_is_taken(self, rtx: Any, rtx_recipe: Recipe) -> None:
        with pytest.raises(EngineBuildError, match=r"[Zz]ero point") as caught:
            build_engine(rtx, quantised(synthetic_model()).SerializeToString(), replace(rtx_recipe, pixels="float32"))
        assert "symmetric codes: signed int8" in caught.value.hint
