"""Files in INT8 through the commands: what came from elsewhere, and what lies beside its FP32 file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from quantising import quantised, save_quantised
from synthetic import HALO, save_synthetic, synthetic_model

from espan_deploy.backends.probe import made_up_photograph
from espan_deploy.cli.main import main
from espan_deploy.files import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    onnx.save(quantised(synthetic_model(described=False)), tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx"


class TestFromElsewhere:
    def test_inspect_reads_through_the_quantisers(self, foreign: Path) -> None:
        facts = json.loads(run("inspect", foreign, "--json").stdout)
        assert (facts["precision"], facts["halo"], facts["scale"]) == ("int8", HALO, 4)
        assert (facts["parameters"], facts["convolutions"]) == (8 * 27 + 48 * 72 + 48, 2)
        assert "int8" in run("inspect", foreign).stdout

    def test_export_judges_and_describes_it(self, foreign: Path, tmp_path: Path) -> None:
        (tmp_path / "flat").mkdir()
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "flat" / "flat.png")
        result = run("export", foreign, "-o", tmp_path / "described.onnx", "--verify", tmp_path / "flat", "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert (report["precision"], report["fold"]["sites"]) == ("int8", [])
        assert report["gate"]["comparison"]["images"] == 1
        facts = json.loads(run("inspect", tmp_path / "described.onnx", "--json").stdout)
        assert facts["kind"] == "ONNX model of espan-deploy"

    def test_export_gives_it_bytes(self, foreign: Path, tmp_path: Path) -> None:
        target = tmp_path / "bytes.onnx"
        result = run("export", foreign, "-o", target, "--precision", "int8", "--pixels", "uint8", "--budget-db", "9")
        assert result.exit_code == 0, result.output
        facts = json.loads(run("inspect", target, "--json").stdout)
        assert (facts["precision"], facts["pixels"]) == ("int8", "uint8")
        refused = run("export", foreign, "-o", target, "--precision", "fp16")
        assert refused.exit_code == 1
        assert "is INT8 already" in refused.stderr

    def test_export_refuses_codes_that_are_too_coarse(self, foreign: Path, tmp_path: Path) -> None:
        model = onnx.load(foreign)
        for tensor in model.graph.initializer:
            if tensor.name == "g.scale":
                scale = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(scale / 4), tensor.name))
        onnx.save(model, foreign)
        result = run("export", foreign, "-o", tmp_path / "described.onnx")
        assert result.exit_code == 3
        assert "dB from FP32, at least 40 wanted" in result.stderr
        assert "--budget-db allows more" in result.stderr
        assert not (tmp_path / "described.onnx").exists()
        allowed = run("export", foreign, "-o", tmp_path / "described.onnx", "--budget-db", "60")
        assert allowed.exit_code == 0, allowed.output
        assert "compared" in allowed.stdout


class TestBeside:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save_quantised(tmp_path / "tiny_int8.onnx", of=save_synthetic(tmp_path / "tiny.onnx"))
        (tmp_path / "in").mkdir()
        for index, (height, width) in enumerate([(120, 90), (61, 150)]):
            pixels = np.ascontiguousarray(made_up_photograph(150, 1)[:height, :width])
            Image.fromarray(pixels).save(tmp_path / "in" / f"{index}.png")
        return tmp_path

    def upscaled(self, folder: Path, out: str, *options: str, model: str = "tiny.onnx") -> tuple[Any, list[Any]]:
        report = folder / f"{out}.json"
        paths = (folder / "in", folder / out, "--model", folder / model, "--report", report)
        result = run("upscale", *paths, "--format", "png", *options)
        assert result.exit_code == 0, result.output
        images = [np.asarray(Image.open(path)) for path in sorted((folder / out).glob("*.png"))]
        return json.loads(report.read_text())["engine"], images

    @pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
    def test_precision_int8_forces_it(self, folder: Path, engine: str) -> None:
        pytest.importorskip(engine)
        told, images = self.upscaled(folder, "codes", "--engine", engine, "--precision", "int8")
        assert (told["backend"], told["precision"]) == (engine, "int8")
        _, exact = self.upscaled(folder, "exact", "--engine", engine, "--precision", "fp32")
        assert not np.array_equal(images[0], exact[0])
        assert np.abs(images[0].astype(int) - exact[0]).mean() < 3
        _, alone = self.upscaled(folder, "alone", "--engine", engine, model="tiny_int8.onnx")
        assert all(np.array_equal(one, other) for one, other in zip(alone, images, strict=True))

    def test_tiles_are_the_whole_byte_for_byte(self, folder: Path) -> None:
        pytest.importorskip("openvino")
        options = ("--engine", "openvino", "--precision", "int8")
        _, whole = self.upscaled(folder, "whole", *options, "--tile", "none")
        _, tiles = self.upscaled(folder, "tiles", *options, "--tile", "37")
        assert len(whole) == 2
        assert all(np.array_equal(one, other) for one, other in zip(tiles, whole, strict=True))

    def test_without_a_file_of_it_there_is_a_hint(self, folder: Path) -> None:
        (folder / "tiny_int8.onnx").unlink()
        result = run("upscale", folder / "in", folder / "out", "--model", folder / "tiny.onnx", "--precision", "int8")
        assert result.exit_code == 5
        assert "tiny.onnx has no INT8 form beside it" in result.stderr
        assert not list(folder.glob("out/*.png"))
