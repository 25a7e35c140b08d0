"""ONNX Runtime's GPU providers, where they cannot be used: asked for nothing, and said why."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from synthetic import save_synthetic

from espan_deploy.backends import onnxruntime_cuda, onnxruntime_tensorrt
from espan_deploy.backends.cuda_memory import gpu_unavailable_reason
from espan_deploy.backends.model import read_model
from espan_deploy.errors import BackendUnavailableError

PROVIDERS = "onnxruntime.get_available_providers"
START = "espan_deploy.backends.onnxruntime_cuda._start_failure"
DRIVER = "espan_deploy.backends.onnxruntime_cuda.driver_unavailable_reason"


@pytest.mark.parametrize("module", [onnxruntime_cuda, onnxruntime_tensorrt])
def test_why_not(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    reason = module.unavailable_reason  # type: ignore[attr-defined]
    monkeypatch.setattr(DRIVER, lambda: "there is no NVIDIA driver")
    assert reason() == "there is no NVIDIA driver"
    monkeypatch.setattr(DRIVER, lambda: None)
    monkeypatch.setattr(PROVIDERS, lambda: ["CPUExecutionProvider"])
    assert "ExecutionProvider; onnxruntime-gpu has" in reason()
    everything = [onnxruntime_cuda.CUDA, onnxruntime_cuda.TENSORRT, "CPUExecutionProvider"]
    monkeypatch.setattr(PROVIDERS, lambda: everything)
    monkeypatch.setattr(START, lambda _provider: None)
    assert reason() is None
    monkeypatch.setattr(START, lambda _provider: "does not start")
    assert reason() == "does not start"


def test_whether_a_provider_starts_is_tried(capfd: pytest.CaptureFixture[str]) -> None:
    """The CPU's does; CUDA's, where it is not compiled in or finds no libraries, does not, and prints nothing."""
    pytest.importorskip("onnxruntime")
    onnxruntime_cuda._start_failure.cache_clear()
    assert onnxruntime_cuda._start_failure("CPUExecutionProvider") is None
    if gpu_unavailable_reason() is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a provider that is not compiled in
            assert "CUDAExecutionProvider does not start" in str(
                onnxruntime_cuda._start_failure("CUDAExecutionProvider")
            )
        assert capfd.readouterr() == ("", "")
    onnxruntime_cuda._start_failure.cache_clear()


def test_a_provider_that_was_passed_over_is_no_success(tmp_path: Path) -> None:
    """ONNX Runtime goes on, on the CPU, where CUDA's libraries do not fit; that would be slow in silence."""
    pytest.importorskip("onnxruntime")
    model = read_model(save_synthetic(tmp_path / "tiny.onnx"))
    with pytest.raises(BackendUnavailableError, match="could not start CUDAExecutionProvider and took CPU") as caught:
        onnxruntime_cuda.open_on(onnxruntime_cuda.CUDA, ["CPUExecutionProvider"], model, threads=1, lanes=1)
    assert caught.value.exit_code == 5


def test_the_runner_says_which_provider_it_is_on(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = read_model(save_synthetic(tmp_path / "tiny.onnx"))
    (runner,) = onnxruntime_cuda.open_on("CPUExecutionProvider", ["CPUExecutionProvider"], model, threads=1, lanes=1)
    assert runner.info.details == {"provider": "CPUExecutionProvider"}
    assert runner.info.device == "GPU"
    runner.close()
