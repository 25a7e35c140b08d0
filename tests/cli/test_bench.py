"""``espan-deploy bench``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from synthetic import SCALE, save_synthetic

from espan_deploy import backends
from espan_deploy.bench import suite as suite_module
from espan_deploy.bench.roofline import Peaks
from espan_deploy.cli.main import main
from espan_deploy.errors import InferenceError

QUICK = ("--runs", 24, "--seconds", 5, "--size", "16x20", "--threads", 1)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of matrix products say nothing about the command."""

    def probe(device: str, *_: Any, **__: Any) -> Peaks:
        return Peaks(device, "test", {"fp32": 100.0, "bf16": 200.0}, ((0.0, 10e9),))

    monkeypatch.setitem(suite_module.Suite.__init__.__kwdefaults__, "probe", probe)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_synthetic(tmp_path / "tiny.onnx")


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, Path]:
    folders = (tmp_path / "LR", tmp_path / "HR")
    rng = np.random.default_rng(1)
    for folder in folders:
        folder.mkdir()
    for name in ("one", "two"):
        low = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(low).save(folders[0] / f"{name}x4.png")
        Image.fromarray(low.repeat(SCALE, 0).repeat(SCALE, 1)).save(folders[1] / f"{name}.png")
    return folders


def test_a_table_for_people(model: Path) -> None:
    result = bench("--model", model, "--engine", "onnxruntime", *QUICK)
    assert result.exit_code == 0, result.output
    assert "16x20: 24 interleaved runs each" in result.stdout
    assert "Tiny · onnxruntime fp32" in result.stdout
    assert "p50 ms" in result.stdout
    assert result.stderr == ""


def test_one_document_for_programs(model: Path) -> None:
    result = bench("--model", model, "--engine", "onnxruntime", "--batch", 1, "--batch", 3, "--json", *QUICK)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert [case["batch"] for case in document["cases"]] == [1, 3]
    for found in document["results"]:
        assert found["latency_ms"]["samples"] == 24
        assert found["latency_ms"]["p50"] > 0
        assert found["warm_up"]["runs"] > 0
    assert document["models"][0]["sha256"]
    assert document["contenders"][0]["info"]["version"]


def test_several_engines_side_by_side(model: Path, tmp_path: Path) -> None:
    other = save_synthetic(tmp_path / "other.onnx", seed=8)
    chosen = [b for b in ("onnxruntime", "openvino") if backends.get(b).unavailable_reason() is None]
    engines = [argument for name in chosen for argument in ("--engine", name)]
    result = bench("--model", model, "--model", other, *engines, "--json", *QUICK)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    names = [contender["name"] for contender in document["contenders"]]
    assert names == [f"{stem} · {engine} fp32" for stem in ("tiny", "other") for engine in chosen]
    assert {found["ratio"]["to"] for found in document["results"]} == {names[0]}


def test_all_takes_every_usable_engine(model: Path) -> None:
    document = json.loads(bench("--model", model, "--engine", "all", "--json", *QUICK).stdout)
    usable = {backend.name for backend in backends.BACKENDS if backend.unavailable_reason() is None}
    assert {contender["engine"] for contender in document["contenders"]} == usable


def test_quality_challenge_and_files(model: Path, pairs: tuple[Path, Path], tmp_path: Path) -> None:
    files = ("--json-file", tmp_path / "report.json", "--html", tmp_path / "report.html")
    settings = ("--engine", "onnxruntime", "--pairs", *pairs, "--ntire", 2025, "--layers")
    result = bench("--model", model, *settings, *files, *QUICK)
    assert result.exit_code == 0, result.output
    for expected in ("quality: mean of 2 images", "NTIRE 2025", "EMSR", "was not in this run", "at least ms"):
        assert expected in result.stdout
    document = json.loads((tmp_path / "report.json").read_text())
    assert len(document["quality"]["images"]) == 2
    assert "data:image/webp" in (tmp_path / "report.html").read_text()


def test_a_folders_own_sizes(model: Path, pairs: tuple[Path, Path]) -> None:
    result = bench("--model", model, "--engine", "onnxruntime", "--images", pairs[0], "--json", *QUICK[:4])
    (case,) = json.loads(result.stdout)["cases"]
    assert case["label"] == "LR (2 images)"
    assert case["inputs"] == 2


def test_torch_beside_the_engines(tmp_path: Path) -> None:
    import torch

    from espan_deploy.networks.span.espan import ESPAN

    torch.manual_seed(2)
    checkpoint = tmp_path / "espan.pth"
    torch.save({"params": ESPAN().state_dict()}, checkpoint)
    settings = ("--engine", "onnxruntime", "--against", "torch", "--runs", 3, "--size", "8x8", "--json")
    result = bench("--model", checkpoint, *settings)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [c["form"] for c in document["contenders"]] == ["folded", "as trained", "folded"]
    assert set(document["results"][1]["stages_ms"]) == {"prepare", "network", "finish"}


def test_a_run_too_short_is_told(model: Path) -> None:
    result = bench("--model", model, "--engine", "onnxruntime", "--runs", 3, "--size", "8x8")
    assert result.exit_code == 0
    assert "too short (3 of 20 runs)" in result.stdout


def test_ctrl_c_prints_what_there_is(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from espan_deploy.backends.onnxruntime import OnnxRuntimeRunner

    real, calls = OnnxRuntimeRunner._infer, 0

    def interrupted(self: OnnxRuntimeRunner, images: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 80:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(OnnxRuntimeRunner, "_infer", interrupted)
    report = tmp_path / "report.json"
    settings = ("--engine", "onnxruntime", "--runs", 5000, "--seconds", 60, "--size", "8x8", "--json-file", report)
    result = bench("--model", model, *settings)
    assert result.exit_code == 130
    assert "Tiny · onnxruntime fp32" in result.stdout
    assert "interrupted" in result.stdout
    document = json.loads(report.read_text())
    assert document["interrupted"]
    assert 0 < document["results"][0]["latency_ms"]["samples"] < 80


class TestWhatIsRefused:
    def refused(self, code: int, *arguments: object) -> str:
        result = bench(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr

    def test_an_unknown_engine(self, model: Path) -> None:
        message = self.refused(5, "--model", model, "--engine", "warp")
        assert "there is no engine 'warp'" in message
        assert "openvino" in message

    def test_an_unknown_precision(self, model: Path) -> None:
        message = self.refused(5, "--model", model, "--engine", "onnxruntime:int3")
        assert "int3" in message
        assert "it has" in message

    def test_an_error_is_json_too(self, model: Path) -> None:
        result = bench("--model", model, "--engine", "warp", "--json")
        assert result.exit_code == 5
        assert json.loads(result.stdout)["error"]["type"] == "BackendUnavailableError"

    def test_a_folder_without_images(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "holds no images" in self.refused(1, "--model", model, "--images", tmp_path / "empty")

    def test_pairs_that_do_not_match(self, model: Path, pairs: tuple[Path, Path]) -> None:
        (pairs[1] / "two.png").rename(pairs[1] / "three.png")
        message = self.refused(1, "--model", model, "--pairs", *pairs)
        assert "twox4.png has no truth" in message
        assert "three.png has no low-resolution image" in message

    def test_a_missing_model(self, tmp_path: Path) -> None:
        assert "cannot read the model" in self.refused(1, "--model", tmp_path / "none.onnx")

    def test_a_model_named_twice(self, model: Path) -> None:
        assert "named twice" in self.refused(1, "--model", model, "--model", model)

    def test_torch_without_the_checkpoint(self, model: Path) -> None:
        message = self.refused(1, "--model", model, "--engine", "onnxruntime", "--against", "torch")
        assert "--checkpoint" in message

    def test_a_report_into_no_folder(self, model: Path, tmp_path: Path) -> None:
        assert "there is no folder" in self.refused(1, "--model", model, "--html", tmp_path / "none" / "page.html")

    def test_a_size_that_is_none(self, model: Path) -> None:
        assert "is no size" in self.refused(2, "--model", model, "--size", "large")

    def test_a_size_under_the_networks_minimum(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from espan_deploy.backends.onnxruntime import OnnxRuntimeRunner

        def refuse(_self: object, images: Any) -> Any:
            raise InferenceError(f"ONNX Runtime failed on {images.shape}: the kernel is larger than the padded input")

        monkeypatch.setattr(OnnxRuntimeRunner, "_infer", refuse)
        message = self.refused(1, "--model", model, "--engine", "onnxruntime", "--size", "2x2")
        assert "does not take 2x2" in message
        assert "larger --size" in message


class TestChoose:
    def run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> Any:
        monkeypatch.setenv("ESPAN_DEPLOY_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("espan_deploy.backends.choice.THOROUGH_SECONDS", 3.0)
        model = save_synthetic(tmp_path / "tiny.onnx")
        return CliRunner().invoke(main, ["bench", "--choose", "--model", str(model), "--threads", "2", *arguments])

    def test_the_whole_table_and_the_verdict(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        result = self.run(monkeypatch, tmp_path, "--size", "60x50")
        assert result.exit_code == 0, result.output
        assert "tiny.onnx, images of 96x96" in result.stdout
        for engine in ("openvino fp32", "onnxruntime fp32"):
            assert result.stdout.count(engine) == 2  # one at once, and two
        assert result.stdout.count("taken") == 1
        assert "kept for `upscale`" in result.stdout

    def test_upscale_takes_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        chosen = json.loads(self.run(monkeypatch, tmp_path, "--size", "200x200", "--json").stdout)["choices"][0]
        (tmp_path / "in").mkdir()
        Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(tmp_path / "in" / "a.png")
        folders = [str(tmp_path / "in"), str(tmp_path / "out")]
        model = ["--model", str(tmp_path / "tiny.onnx"), "--threads", "2"]
        result = CliRunner().invoke(main, ["upscale", *folders, *model, "--json"])
        engine = json.loads(result.stdout)["engine"]
        assert f"{engine['backend']} {engine['precision']}" == chosen["best"]["engine"]
        assert engine["choice"]["basis"] == "known"
        assert "measured on this machine on" in engine["chosen_because"]

    def test_options_that_would_do_nothing_are_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        result = self.run(monkeypatch, tmp_path, "--runs", "3")
        assert result.exit_code == 2
        assert "it takes no runs" in result.stderr
