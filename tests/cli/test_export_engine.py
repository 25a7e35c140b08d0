"""``export`` to engines and FP16 graphs, ``inspect`` of engines, and the cache, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, numpy_helper
from synthetic import save_synthetic

from espan_deploy.backends.trt_module import unavailable_reason
from espan_deploy.cli.main import main

RECIPE = """
title = "A small one"
backend = "tensorrt-rtx"
precision = "fp16"

[target]
compute_capability = ["8.6"]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPAN_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_synthetic(tmp_path / "tiny.onnx"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def needs_rtx() -> None:
    reason = unavailable_reason("tensorrt-rtx")
    if reason is not None:
        pytest.skip(f"{reason}: pip install 'espan-deploy[rtx]'")


def test_an_engine_is_built_described_and_cached(model: str, tmp_path: Path) -> None:
    needs_rtx()
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    done = run("export", model, "--recipe", recipe)
    assert done.exit_code == 0, done.output
    assert "dB from FP32" in done.stdout
    assert "tensorrt-rtx" in done.stdout
    assert done.stderr == ""
    engine = tmp_path / "tiny.engine"
    assert engine.is_file()
    assert (tmp_path / "tiny.engine.json").is_file()

    shown = run("inspect", engine)
    assert shown.exit_code == 0, shown.output
    assert "from 1x1x1x3 to 8x512x512x3" in shown.stdout
    facts = json.loads(run("inspect", engine, "--json").stdout)
    assert (facts["schema_version"], facts["kind"], facts["precision"]) == (1, "engine", "fp16")
    assert facts["manifest"]["engine_sha256"] == facts["sha256"]

    again = json.loads(run("export", model, "--recipe", recipe, "--json").stdout)
    assert again["from_cache"]
    assert again["manifest"]["key"] == facts["manifest"]["key"]
    recipe.write_text(RECIPE + "[profile]\nheight = { min = 1, opt = 256, max = 1024 }\n")
    changed = json.loads(run("export", model, "--recipe", recipe, "--json").stdout)
    assert changed["rebuilt_because"] == ["profile.height.max: 512 -> 1024"]

    listed = run("export", "--list-cache")
    assert listed.stdout.count("tiny, small, tensorrt-rtx") == 2
    assert json.loads(run("export", "--list-cache", "--json").stdout)["engines"][0]["problem"] == ""
    assert "removed 2 engines" in run("export", "--clear-cache").stdout

    engine.write_bytes(engine.read_bytes()[:-1])
    refused = run("inspect", engine)
    assert refused.exit_code == 1
    assert "truncated" in refused.stderr


@pytest.mark.parametrize("pixels", ["uint8", "float16"])
def test_an_fp16_graph(model: str, tmp_path: Path, pixels: str) -> None:
    done = run("export", model, "-o", "half.onnx", "--precision", "fp16", "--pixels", pixels, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["gate"]["comparison"]["nonfinite"] == 0
    graph = onnx.load(tmp_path / "half.onnx").graph
    wanted = {"uint8": TensorProto.UINT8, "float16": TensorProto.FLOAT16}[pixels]
    assert graph.input[0].type.tensor_type.elem_type == wanted
    kinds = {tensor.data_type for tensor in graph.initializer if numpy_helper.to_array(tensor).dtype.kind == "f"}
    assert TensorProto.FLOAT16 in kinds


def test_pixels_alone_leave_fp32(model: str, tmp_path: Path) -> None:
    done = run("export", model, "-o", "bytes.onnx", "--pixels", "uint8")
    assert done.exit_code == 0, done.output
    weights = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "bytes.onnx").graph.initializer]
    assert all(weight.dtype != np.float16 for weight in weights)


def test_the_gate_says_no_with_exit_3_and_auto_finds_a_way(tmp_path: Path) -> None:
    loud = save_synthetic(tmp_path / "loud.onnx", gain=2e4)
    refused = run("export", loud, "-o", "half.onnx", "--precision", "fp16", "--json")
    assert refused.exit_code == 3
    assert json.loads(refused.stdout)["error"]["type"] == "VerificationError"
    assert "--keep-fp32" in refused.stderr
    assert not (tmp_path / "half.onnx").exists()
    done = run("export", loud, "-o", "half.onnx", "--precision", "fp16", "--keep-fp32", "auto")
    assert done.exit_code == 0, done.output
    assert "kept in FP32" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--recipe", "a6000-pf16"], 1, "did you mean 'a6000-fp16'"),
        (["--recipe", "a6000-fp16", "-o", "x.onnx"], 2, "ends in .engine"),
        (["--recipe", "cpu-onnxruntime-fp32", "-o", "x.engine"], 2, "ends in .onnx"),
        (["--precision", "fp16", "-o", "x.onnx", "--keep-fp32", "nothing"], 1, "no layer 'nothing'"),
        (["--precision", "fp16", "-o", "x.onnx", "--verify", "nowhere"], 1, "nowhere is no folder"),
    ],
)
def test_mistakes(model: str, tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    done = run("export", model, *arguments)
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".onnx", ".engine")) == ["tiny.onnx"]


def test_nothing_named_is_a_usage_error() -> None:
    assert run("export").exit_code == 2


def test_an_engine_without_its_backend_is_exit_5(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    done = run("export", model, "--recipe", "a6000-rtx-fp16")
    assert done.exit_code == 5
    assert "espan-deploy[rtx]" in done.stderr
