"""The doctor with a GPU: every engine of TensorRT and its recipes, on the stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from espan_deploy import backends
from espan_deploy.cli.main import main
from espan_deploy.doctor import checks


def test_a_machine_with_a_gpu(driver: Any, cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espan_deploy.doctor.examination.can_run_apart", lambda: False)  # this process has the driver
    monkeypatch.setattr(checks, "SIZES", ((16, 16),))
    monkeypatch.setattr(checks, "PHOTOGRAPHS", {"cpu": 1, "gpu": 2})
    monkeypatch.setattr(checks, "MIXED", 2)
    monkeypatch.setattr(checks, "COPY_BYTES", 4096)
    names = ("tensorrt", "tensorrt-rtx", "onnxruntime")
    monkeypatch.setattr(backends, "BACKENDS", tuple(backends.get(name) for name in names))
    result = CliRunner().invoke(main, ["doctor", "--model", str(model), "--seconds", "0.01", "--json"])
    assert result.exit_code == 0, result.output
    found = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert {finding["outcome"] for finding in found.values()} == {"fine"}
    assert found["driver"]["facts"] == {"cuda": "13.0"}
    assert found["GPU"]["facts"]["name"] == "Stand-in card"
    for name in ("tensorrt fp16", "tensorrt-rtx fp16"):
        assert [timing["batch"] for timing in found[name]["facts"]["timings"]] == [1, 8]
        assert set(found[name]["facts"]["timings"][0]["stages_ms"]) == {"copy in", "engine", "copy out"}
    assert [timing["batch"] for timing in found["recipe a6000-fp16"]["facts"]["timings"]] == [1, 16]
    assert found["upscale"]["facts"]["engine"]["backend"] == "tensorrt"
    assert not any(driver.held().values())
