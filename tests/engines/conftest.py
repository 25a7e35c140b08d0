"""A cache folder of the test's own, TensorRT-RTX where it is installed, and a GPU made of numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import save_synthetic

from espan_deploy.backends.trt_module import load_module, unavailable_reason
from espan_deploy.recipes import Recipe, parse_recipe

RTX_TOML = """
title = "Tests"
backend = "tensorrt-rtx"
precision = "fp16"

[target]
compute_capability = ["8.6"]

[profile]
batch = { min = 1, opt = 2, max = 4 }
height = { min = 1, opt = 32, max = 64 }
width = { min = 1, opt = 32, max = 64 }
"""

CPU_TOML = """
title = "Tests"
backend = "onnxruntime"
precision = "fp16"
pixels = "uint8"
"""


@pytest.fixture(scope="session")
def rtx() -> Any:
    """The real TensorRT-RTX module; it builds without a GPU."""
    reason = unavailable_reason("tensorrt-rtx")
    if reason is not None:
        pytest.skip(f"{reason}: pip install 'espan-deploy[rtx]'")
    return load_module("tensorrt-rtx")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ESPAN_DEPLOY_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_synthetic(tmp_path / "tiny.onnx")


@pytest.fixture
def rtx_recipe() -> Recipe:
    return parse_recipe(RTX_TOML, "test-rtx")


@pytest.fixture
def cpu_recipe() -> Recipe:
    """An engine that is a graph: what needs no TensorRT is tested everywhere."""
    return parse_recipe(CPU_TOML, "test-cpu")
