"""ONNX Runtime on an NVIDIA GPU, through its CUDA provider or its TensorRT provider.

Asked only where it can be used: elsewhere ONNX Runtime prints errors and goes on, on the CPU.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

from espan_deploy.backends.base import Runner
from espan_deploy.backends.cuda_memory import driver_unavailable_reason
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.onnxruntime import FATAL, OnnxRuntimeRunner, Sessions
from espan_deploy.errors import BackendUnavailableError

PRECISIONS = ("fp32",)

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

CUDA_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA's and cuDNN's libraries"

FULL_FP32: tuple[str, dict[str, Any]] = (CUDA, {"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"})
"""TF32 would round every product to 11 bits and call it FP32. The search's default, EXHAUSTIVE, runs every algorithm
for each new size of image, and sizes change from call to call."""


def unavailable_reason() -> str | None:
    """None where the installed ONNX Runtime has the CUDA provider, a driver is there, and the provider starts."""
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
    return _start_failure(provider)


@cache
def _start_failure(provider: str) -> str | None:
    """Why a provider that is compiled in does not start, or None: whether its libraries load, only a trial tells."""
    import onnxruntime
    from onnx import TensorProto, helper

    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21; finds the libraries that pip installed
        with redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "trial", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
        used = session.get_providers()[0]
    except Exception as exc:  # its errors share no base class
        return f"{provider} does not start: {str(exc).strip().splitlines()[0]}"
    finally:
        onnxruntime.set_default_logger_severity(2)  # warnings, as it begins
    return None if used == provider else f"{provider} does not start, its libraries do not load; {CUDA_LIBRARIES}"


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
            f"ONNX Runtime could not start {provider} and took {used[0]}", hint=CUDA_LIBRARIES
        )
    return [_GpuRunner(sessions, provider) for _ in range(lanes)]


class _GpuRunner(OnnxRuntimeRunner):
    """The same runner, on the GPU."""

    def __init__(self, sessions: Sessions, provider: str) -> None:
        super().__init__(sessions, "fp32")
        name = "onnxruntime-tensorrt" if provider == TENSORRT else "onnxruntime-cuda"
        self.info = replace(self.info, backend=name, device="GPU", threads=None, details={"provider": provider})
