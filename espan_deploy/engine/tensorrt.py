"""TensorRT on an NVIDIA GPU."""

from __future__ import annotations

from espan_deploy.backends.base import Runner
from espan_deploy.backends.model import ModelFile
from espan_deploy.engine.open import open_trt_runners, trt_unavailable_reason

PRECISIONS = ("fp32", "fp16")


def unavailable_reason() -> str | None:
    """None where TensorRT and a GPU are there."""
    return trt_unavailable_reason("tensorrt")


def preferred_precision() -> str:
    """FP16: every GPU it supports computes it at least twice as fast."""
    return "fp16"


def open_runners(model: ModelFile, *, precision: str, threads: int | None, lanes: int) -> list[Runner]:
    """Runners over one engine: that of an engine file, or built and cached for this GPU from an ONNX file."""
    del threads
    return open_trt_runners("tensorrt", model, precision=precision, lanes=lanes)
