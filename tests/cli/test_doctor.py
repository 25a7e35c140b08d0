"""The doctor from outside, on whatever machine this is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from synthetic import save_synthetic

from espan_deploy import backends
from espan_deploy.cli.main import main
from espan_deploy.doctor import checks


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPAN_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checks, "SIZES", ((16, 16), (17, 30)))
    monkeypatch.setattr(checks, "PHOTOGRAPHS", {"cpu": 2, "gpu": 2})
    monkeypatch.setattr(checks, "MIXED", 2)


def test_everything_is_examined_and_the_report_can_be_sent(tmp_path: Path) -> None:
    model = save_synthetic(tmp_path / "tiny.onnx")
    result = CliRunner().invoke(main, ["doctor", "--model", str(model), "--seconds", "0.01", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["environment"]["cpu_usable_cores"] >= 1
    found = {finding["name"]: finding for finding in document["findings"]}
    for backend in backends.BACKENDS:
        finding = found[f"{backend.name} fp32"]
        reason = backend.unavailable_reason()
        assert finding["outcome"] == ("fine" if reason is None else "not here")
        if reason is None:
            assert min(finding["facts"]["psnr_db"]) >= checks.EXACT_DB
            assert [timing["width"] for timing in finding["facts"]["timings"]][-1] == 30
            assert all(timing["median_ms"] > 0 for timing in finding["facts"]["timings"])
        else:
            assert reason in finding["reason"]
    assert found["upscale"]["facts"]["images_per_s"] > 0
    assert "upscale ..." in result.stderr


def test_an_engine_that_is_wrong_is_told_and_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(checks, "EXACT_DB", 999.0)
    monkeypatch.setattr(backends, "BACKENDS", (backends.get("openvino"), backends.get("onnxruntime")))
    monkeypatch.setattr(checks, "recipe_names", list)
    model = save_synthetic(tmp_path / "tiny.onnx")
    result = CliRunner().invoke(main, ["doctor", "--model", str(model), "--seconds", "0.01"])
    assert result.exit_code == 3, result.output
    assert "dB from FP32, expected 999 (send this report)" in result.stdout
    assert "failed: openvino fp32" in result.stdout
