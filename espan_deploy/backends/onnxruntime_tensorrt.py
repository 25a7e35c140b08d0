"""ONNX Runtime on an NVIDIA GPU, through its TensorRT provider, which builds an engine of each size it meets."""

from __future__ import annotations

import os

from espan_deploy.backends.base import Runner
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.onnxruntime_cuda import FULL_FP32, TENSORRT, open_on, provider_unavailable_reason

PRECISIONS = ("fp32",)


def unavailable_reason() -> str | None:
    """None where the installed ONNX Runtime has the TensorRT provider, and there is a driver."""
    return provider_unavailable_reason(TENSORRT)


def preferred_precision() -> str:
    """FP32; for FP16, TensorRT itself is there."""
    return "fp32"


def open_runners(model: ModelFile, *, precision: str, threads: int | None, lanes: int) -> list[Runner]:
    """Runners over shared sessions on the GPU."""
    del precision
    # The provider has no option against TF32, which would round every product to 11 bits and call it FP32; NVIDIA's
    # libraries have this one, read when they start. Our other engines compute without TF32 anyhow.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    return open_on(TENSORRT, [TENSORRT, FULL_FP32, "CPUExecutionProvider"], model, threads=threads, lanes=lanes)
