"""OpenVINO on the CPU, in FP32, bfloat16, or INT8 where the graph says how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from espan_deploy.backends.base import EngineInfo, Images, Runner, Step
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.openvino_runtime import openvino_module
from espan_deploy.backends.openvino_shapes import CompiledModel, first_line, upscale_into, upscaled
from espan_deploy.errors import InferenceError
from espan_deploy.machine import usable_cores

PRECISIONS = ("fp32", "bf16", "int8")

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""OpenVINO's names; beside INT8, what the graph leaves in floats is computed in FP32: bfloat16 would save a fourteenth
where a processor is made for it, which takes bfloat16 for all then, and cost twice the time elsewhere."""


def unavailable_reason() -> str | None:
    """None where the module is installed."""
    return None if find_spec("openvino") else "openvino is not installed"


def preferred_precision() -> str:
    """Bfloat16 where the CPU computes in it, else FP32."""
    capabilities = openvino_module().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp32"


def open_runners(model: ModelFile, *, precision: str, threads: int | None, lanes: int) -> list[Runner]:
    """Runners over shared compiled models: as many streams as lanes, over all the threads."""
    compiled = CompiledModel(model, HINTS[precision], threads or usable_cores(), lanes)
    return [OpenVinoRunner(compiled, precision) for _ in range(lanes)]


class OpenVinoRunner(Runner):
    """A model in OpenVINO; runners of one compiled model work at once, each on a stream."""

    def __init__(self, compiled: CompiledModel, precision: str) -> None:
        self._compiled = compiled
        self.description = compiled.model.description
        self.info = EngineInfo(
            "openvino",
            compiled.version,
            str(compiled.core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            precision,
            threads=compiled.threads,
            details={
                "streams": compiled.streams,
                "bytes_per_pixel": compiled.bytes_per_pixel,
                "compiles_frequent_shapes": compiled.shapes_agree,
            },
        )

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Compile the network for it."""
        with self._compiled.network("uint8", shape).request():
            pass

    def profile(self, images: Images, runs: int) -> list[Step]:
        """OpenVINO's own counters, of a network compiled for this shape."""
        return self._compiled.profile(images, runs)

    def _infer(self, images: Images) -> Images:
        with self._request(images) as request:
            return upscaled(request, images, self.description.scale)

    def _infer_into(self, images: Images, kept: tuple[slice, slice], out: Images) -> None:
        with self._request(images) as request:
            upscale_into(request, images, kept, out)

    @contextmanager
    def _request(self, images: Images) -> Iterator[Any]:
        pixels = "uint8" if images.dtype == np.uint8 else "float32"
        try:
            with self._compiled.network(pixels, images.shape).request() as request:
                yield request
        except RuntimeError as exc:
            raise InferenceError(f"OpenVINO failed on {images.shape}: {first_line(exc)}") from exc
