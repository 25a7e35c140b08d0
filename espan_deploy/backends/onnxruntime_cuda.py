"""ONNX Runtime on an NVIDIA GPU, through its CUDA provider or its TensorRT provider.

Asked only where it can be used: elsewhere ONNX Runtime prints errors and goes on, on the CPU.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from espan_deploy.backends.base import Runner
from espan_deploy.backends.cuda_memory import driver_unavailable_reason
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.onnxruntime import OnnxRuntimeRunner, Sessions
from espan_deploy.errors import BackendUnavailableError

PRECISIONS = ("fp32",)

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

FULL_FP32: tuple[str, dict[str, Any]] = (CUDA, {"use_tf32": 0})
"""TF32 would round every product to 11 bits and call it FP32."""


def unavailable_reason() -> str | None:
    """None where the installed ONNX Runtime has the CUDA provider, and there is a driver."""
    return provider_unavailable_reason(CUDA)


def provider_unavailable_reason(provider: str) -> str | None:
    """Why a provider cannot be used, or None."""
    if not find_spec("onnxruntime"):
        return "onnxruntime-gpu is not installed"
    # Before the import: it takes a tenth of a second, which every run on a machine without a GPU would pay.
    if (reason := driver_unavailable_reason()) is not None:
        return reason
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return f"the installed ONNX Runtime has no {provider}; onnxruntime-gpu has"
    return None


def preferred_precision() -> str:
    """FP32; for FP16, TensorRT is there."""
    return "fp32"


def open_runners(model: ModelFile, *, precision: str, threads: int | None, lanes: int) -> list[Runner]:
    """Runners over shared sessions on the GPU."""
    del precision
    return open_on(CUDA, [FULL_FP32, "CPUExecutionProvider"], model, threads=threads, lanes=lanes)


def open_on(provider: str, providers: list[Any], model: ModelFile, *, threads: int | None, lanes: int) -> list[Runner]:
    """Runners over shared sessions. Raises BackendUnavailableError where the provider was passed over."""
    sessions = Sessions(model, threads or 1, providers)
    used = sessions.get("uint8").get_providers()
    if used[0] != provider:
        raise BackendUnavailableError(
            f"ONNX Runtime could not start {provider} and took {used[0]}",
            hint="install the CUDA and cuDNN versions that onnxruntime-gpu's release notes name",
        )
    return [_GpuRunner(sessions, provider) for _ in range(lanes)]


class _GpuRunner(OnnxRuntimeRunner):
    """The same runner, on the GPU."""

    def __init__(self, sessions: Sessions, provider: str) -> None:
        super().__init__(sessions)
        name = "onnxruntime-tensorrt" if provider == TENSORRT else "onnxruntime-cuda"
        self.info = replace(self.info, backend=name, device="GPU", threads=None, details={"provider": provider})
