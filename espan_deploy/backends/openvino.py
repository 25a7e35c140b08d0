"""OpenVINO on the CPU, in FP32 or bfloat16."""

from __future__ import annotations

import os
import threading
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from espan_deploy.backends.base import EngineInfo, Images, Runner
from espan_deploy.backends.finite import check_finite
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.openvino_graph import bytes_per_pixel, with_pixels
from espan_deploy.errors import EngineBuildError, InferenceError

PRECISIONS = ("fp32", "bf16")

HINTS = {"fp32": "f32", "bf16": "bf16"}


def unavailable_reason() -> str | None:
    """None where the module is installed."""
    return None if find_spec("openvino") else "openvino is not installed"


def preferred_precision() -> str:
    """Bfloat16 where the CPU computes in it, else FP32."""
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp32"


def open_runners(model: ModelFile, *, precision: str, threads: int | None, lanes: int) -> list[Runner]:
    """Runners over shared compiled models: as many streams as lanes, over all the threads."""
    compiled = _Compiled(model, precision, threads or os.cpu_count() or 1, lanes)
    return [OpenVinoRunner(compiled) for _ in range(lanes)]


class _Compiled:
    """The model compiled for bytes and for floats, each when first asked for."""

    def __init__(self, model: ModelFile, precision: str, threads: int, streams: int) -> None:
        import openvino

        self.model, self.precision, self.threads, self.streams = model, precision, threads, streams
        self.core = openvino.Core()
        self._lock = threading.Lock()
        self._compiled: dict[str, Any] = {}
        self.bytes_per_pixel = 0
        self.get("uint8")

    def get(self, pixels: str) -> Any:
        with self._lock:
            if pixels not in self._compiled:
                self._compiled[pixels] = self._compile(pixels)
            return self._compiled[pixels]

    def _compile(self, pixels: str) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": self.streams,
            # Pinned, a stream would wait for its core while decoding or encoding has it, next to a free one.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            network = self.core.read_model(self.model.data)
            if not self.bytes_per_pixel:
                self.bytes_per_pixel = bytes_per_pixel(network, self.precision)
            wrapped = with_pixels(network, self.model.description, pixels)
            return self.core.compile_model(wrapped, "CPU", settings)
        except RuntimeError as exc:
            raise EngineBuildError(f"OpenVINO refuses {self.model.path.name}: {_first_line(exc)}") from exc


class OpenVinoRunner(Runner):
    """A model in OpenVINO, one of the streams of a compiled model."""

    def __init__(self, compiled: _Compiled) -> None:
        self._compiled = compiled
        self._requests: dict[str, Any] = {}
        self.description = compiled.model.description
        self.info = EngineInfo(
            "openvino",
            version("openvino"),
            str(compiled.core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            compiled.precision,
            threads=compiled.threads,
            details={"streams": compiled.streams, "bytes_per_pixel": compiled.bytes_per_pixel},
        )

    def _infer(self, images: Images) -> Images:
        import openvino

        pixels = "uint8" if images.dtype == np.uint8 else "float32"
        if pixels not in self._requests:
            self._requests[pixels] = self._compiled.get(pixels).create_infer_request()
        request = self._requests[pixels]
        count, height, width, _ = images.shape
        scale = self.description.scale
        result = np.empty((count, height * scale, width * scale, 3), images.dtype)
        try:
            # Both share the arrays' memory: nothing is copied on the way in or out. It refuses read-only arrays.
            images = images if images.flags.writeable else images.copy()
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
            request.set_output_tensor(0, openvino.Tensor(result, shared_memory=True))
            request.infer()
        except RuntimeError as exc:
            raise InferenceError(f"OpenVINO failed on {images.shape}: {_first_line(exc)}") from exc
        if len(request.results) > 1:
            check_finite(request.get_output_tensor(1).data)
        return result

    def close(self) -> None:
        """Drop the requests; the compiled model goes with the last runner."""
        self._requests.clear()


def _first_line(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__
