"""Engine files: built through the gate, cached by content, refused where they are not what they say."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from synthetic import save_synthetic, synthetic_model

from espan_deploy.backends.manifest import changes, check_runtime, manifest_path, read_engine
from espan_deploy.engine import cache as caching
from espan_deploy.engine.build import EngineResult, describe_engine, engine_from_onnx
from espan_deploy.errors import (
    BackendUnavailableError,
    EngineMismatchError,
    ExportError,
    InputError,
    VerificationError,
)
from espan_deploy.recipes import Budget, Profile, Recipe, RunSettings, Span, Target, load_recipe

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def engine(model: Path, cpu_recipe: Recipe, tmp_path: Path) -> EngineResult:
    return engine_from_onnx(model, cpu_recipe, output=tmp_path / "out" / "tiny.engine")


def test_an_rtx_engine_and_its_manifest(rtx: Any, model: Path, rtx_recipe: Recipe, tmp_path: Path) -> None:
    result = engine_from_onnx(model, rtx_recipe, output=tmp_path / "tiny.engine")
    assert not result.from_cache
    data, manifest = read_engine(result.path)
    assert manifest == result.manifest
    assert manifest.engine_bytes == len(data)
    assert (manifest.backend, manifest.backend_version) == ("tensorrt-rtx", rtx.__version__)
    assert manifest.compute_capability == ("8.6",)
    assert [t["name"] for t in manifest.tensors] == ["input", "output", "guard"]
    assert manifest.tensors[0]["profile"] == [[1, 1, 1, 3], [2, 32, 32, 3], [4, 64, 64, 3]]
    assert len(manifest.layers) > 5
    assert manifest.gate["comparison"]["psnr_db"] > Budget().min_psnr_db
    described = manifest.model_description()
    assert (described.precision, described.pixels, described.scale) == ("fp16", "uint8", 4)
    assert manifest.build_seconds > 0
    assert describe_engine(result.path) == manifest
    assert engine_from_onnx(model, rtx_recipe).from_cache


def test_a_graph_engine_holds_the_same(engine: EngineResult) -> None:
    manifest = engine.manifest
    onnx.checker.check_model(onnx.load_from_string(engine.path.read_bytes()))
    assert [t["dtype"] for t in manifest.tensors] == ["uint8", "uint8", "float32"]
    assert manifest.settings["precision"] == "fp16"
    assert manifest.onnx_sha256 != manifest.graph_sha256


def test_the_second_time_it_comes_from_the_cache(model: Path, cpu_recipe: Recipe, engine: EngineResult) -> None:
    again = engine_from_onnx(model, cpu_recipe)
    assert again.from_cache
    assert again.manifest == engine.manifest
    forced = engine_from_onnx(model, cpu_recipe, force=True)
    assert not forced.from_cache
    assert forced.manifest.key == engine.manifest.key


def test_names_and_run_settings_build_nothing_anew(model: Path, cpu_recipe: Recipe, engine: EngineResult) -> None:
    other = replace(cpu_recipe, name="renamed", title="Other", run=RunSettings(threads=3))
    assert engine_from_onnx(model, other).from_cache
    assert engine.manifest.recipe == "test-cpu"


CHANGED: list[tuple[dict[str, Any], str]] = [
    ({"profile": Profile(height=Span(1, 256, 1024))}, "profile.height.max: 512 -> 1024"),
    ({"target": Target(compute_capability=("8.9",))}, "target.compute_capability: [] -> ['8.9']"),
    ({"budget": Budget(min_psnr_db=50.0)}, "budget.min_psnr_db: 55.0 -> 50.0"),
    ({"keep_fp32": ("w1",)}, "keep_fp32: [] -> ['w1']"),
    ({"pixels": "float32"}, "pixels: uint8 -> float32"),
]


@pytest.mark.parametrize(("change", "said"), CHANGED, ids=[said.split(":")[0] for _, said in CHANGED])
def test_every_changed_setting_builds_anew_and_is_named(
    model: Path, cpu_recipe: Recipe, engine: EngineResult, change: dict[str, Any], said: str
) -> None:
    result = engine_from_onnx(model, replace(cpu_recipe, **change), output=engine.path)
    assert not result.from_cache
    assert result.reasons == (said,)


def test_a_changed_model_version_or_image_is_named(
    model: Path, cpu_recipe: Recipe, engine: EngineResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not engine.from_cache
    save_synthetic(model, seed=8)
    assert engine_from_onnx(model, cpu_recipe).reasons == ("onnx_sha256: changed",)
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(images / "x.png")
    assert engine_from_onnx(model, cpu_recipe, verify=images).reasons == ("verify_images_sha256: changed",)
    monkeypatch.setattr("espan_deploy.engine.build.__version__", "99.0")
    assert any("tool_version" in reason for reason in engine_from_onnx(model, cpu_recipe, verify=images).reasons)


def test_changes_name_what_came_and_went() -> None:
    assert changes({"a": 1, "x_sha256": "1"}, {"b": 2, "x_sha256": "2"}) == (
        "a: 1 -> None",
        "b: None -> 2",
        "x_sha256: changed",
    )


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_random(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def damage_grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def damage_no_manifest(path: Path) -> None:
    manifest_path(path).unlink()


def damage_manifest(path: Path) -> None:
    manifest_path(path).write_text('{"schema_version": 1, "name": ')


def damage_schema(path: Path) -> None:
    document = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**document, "schema_version": 9}))


def damage_fields(path: Path) -> None:
    document = json.loads(manifest_path(path).read_text())
    del document["engine_sha256"]
    manifest_path(path).write_text(json.dumps(document))


DAMAGES = [
    (damage_truncate, "truncated"),
    (damage_flip, "is not the engine its manifest describes"),
    (damage_random, "is not the engine its manifest describes"),
    (damage_grow, "another file"),
    (damage_no_manifest, "has no manifest"),
    (damage_manifest, "is damaged"),
    (damage_schema, "schema 9"),
    (damage_fields, "is damaged"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
def test_a_damaged_engine_is_refused_with_the_reason(engine: EngineResult, damage: Any, said: str) -> None:
    damage(engine.path)
    with pytest.raises(EngineMismatchError, match=said):
        read_engine(engine.path)


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
def test_a_damaged_engine_in_the_cache_is_built_anew(
    model: Path, cpu_recipe: Recipe, engine: EngineResult, damage: Any, said: str
) -> None:
    cached = caching.engine_path(engine.manifest.key, ".onnx")
    damage(cached)
    (entry,) = caching.list_cache(verify=True)
    assert said in entry.problem
    result = engine_from_onnx(model, cpu_recipe)
    assert not result.from_cache
    assert said in result.reasons[0]
    assert engine_from_onnx(model, cpu_recipe).from_cache


def test_a_missing_engine() -> None:
    with pytest.raises(InputError, match="cannot read the engine"):
        read_engine(Path("nowhere.engine"))


def test_the_wrong_backend_version_or_device_is_refused(rtx: Any, model: Path, rtx_recipe: Recipe) -> None:
    manifest = engine_from_onnx(model, rtx_recipe).manifest
    version = rtx.__version__

    def check(**changed: Any) -> None:
        facts = {"backend": "tensorrt-rtx", "backend_version": version, "compute_capability": "8.6", "gpu": "a card"}
        check_runtime(manifest, **{**facts, **changed})

    check()
    check(compute_capability=None)
    with pytest.raises(EngineMismatchError, match=r"capability 8\.6; a card is 9\.0"):
        check(compute_capability="9.0")
    with pytest.raises(EngineMismatchError, match=r"was built by tensorrt-rtx .*, this is 1\.0"):
        check(backend_version="1.0")
    with pytest.raises(EngineMismatchError, match="not of tensorrt") as caught:
        check(backend="tensorrt")
    assert "--engine tensorrt-rtx" in caught.value.hint


def test_compatible_engines_are_let_through(engine: EngineResult) -> None:
    def made(**target: Any) -> Any:
        settings = {**engine.manifest.settings, "target": target}
        return replace(engine.manifest, backend="tensorrt", backend_version="10.8.0", settings=settings)

    facts = {"backend": "tensorrt", "gpu": "a card"}
    everywhere = made(hardware_compatibility="ampere-plus", version_compatible=True)
    check_runtime(everywhere, backend_version="10.13.3", compute_capability="12.0", **facts)
    with pytest.raises(EngineMismatchError, match="from Ampere on"):
        check_runtime(everywhere, backend_version="10.8.0", compute_capability="7.5", **facts)
    with pytest.raises(EngineMismatchError, match="was built by"):
        check_runtime(everywhere, backend_version="10.7.9", compute_capability="8.6", **facts)


def test_the_gate_says_no_and_leaves_nothing(tmp_path: Path, cpu_recipe: Recipe, cache: Path) -> None:
    model = save_synthetic(tmp_path / "loud.onnx", gain=2e4)
    with pytest.raises(VerificationError, match="w1"):
        engine_from_onnx(model, cpu_recipe, output=tmp_path / "loud.engine")
    assert not (tmp_path / "loud.engine").exists()
    assert [path.suffix for path in (cache / "engines").iterdir()] == [".lock"]
    result = engine_from_onnx(model, cpu_recipe, keep_fp32="auto")
    assert "w1" in result.manifest.gate["kept_fp32"]
    assert result.manifest.parts["keep_fp32"] == "auto"


def test_models_that_cannot_be_used(tmp_path: Path, cpu_recipe: Recipe, engine: EngineResult) -> None:
    with pytest.raises(InputError, match="cannot read the model"):
        engine_from_onnx(tmp_path / "missing.onnx", cpu_recipe)
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    with pytest.raises(ExportError, match="not an ONNX file"):
        engine_from_onnx(text, cpu_recipe)
    with pytest.raises(ExportError, match="carries no description"):
        engine_from_onnx(save_synthetic(tmp_path / "bare.onnx", described=False), cpu_recipe)
    done = tmp_path / "done.onnx"
    done.write_bytes(engine.path.read_bytes())
    with pytest.raises(ExportError, match="fp16 with uint8 pixels already"):
        engine_from_onnx(done, cpu_recipe)


def test_recipes_whose_backend_or_gpu_is_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("a6000-fp16", "a6000-rtx-fp16"):
        with pytest.raises(BackendUnavailableError, match="is not installed") as caught:
            engine_from_onnx(model, load_recipe(name))
        assert caught.value.exit_code == 5


def test_the_gpu_at_hand_is_missed(rtx: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rtx
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendUnavailableError, match="builds on the GPU itself") as caught:
        engine_from_onnx(model, load_recipe("this-gpu-rtx-fp16"))
    assert "a6000-rtx-fp16" in caught.value.hint


def test_bfloat16_passes_openvino_s_own_gate(model: Path) -> None:
    from espan_deploy import backends

    reason = backends.get("openvino").unavailable_reason()
    if reason:
        pytest.skip(reason)
    manifest = engine_from_onnx(model, load_recipe("cpu-openvino-bf16")).manifest
    assert manifest.gate["engine_comparison"]["nonfinite"] == 0
    strict = replace(load_recipe("cpu-openvino-bf16"), budget=Budget(max_nonfinite=-1))
    with pytest.raises(VerificationError, match="the engine is outside"):
        engine_from_onnx(model, strict)


def test_a_model_of_one_size_is_verified_at_that_size(tmp_path: Path, cpu_recipe: Recipe) -> None:
    model = synthetic_model()
    for value, sides in ((model.graph.input[0], (24, 100)), (model.graph.output[0], (96, 400))):
        for dim, side in zip(value.type.tensor_type.shape.dim[2:], sides, strict=True):
            dim.Clear()
            dim.dim_value = side
    onnx.save(model, tmp_path / "static.onnx")
    manifest = engine_from_onnx(tmp_path / "static.onnx", cpu_recipe).manifest
    assert manifest.tensors[0]["shape"] == [None, 24, 100, 3]
    compared = manifest.gate["comparison"]
    assert compared["values"] == (compared["images"] - 1) * 96 * 400 * 3  # one is for stress alone


def test_the_model_is_left_alone(model: Path, cpu_recipe: Recipe) -> None:
    before = model.read_bytes()
    engine_from_onnx(model, cpu_recipe)
    assert model.read_bytes() == before
    assert synthetic_model().SerializeToString() == before
