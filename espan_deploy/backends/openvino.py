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
from espan_deploy.errors import EngineBuildError, InferenceError, InputShapeError

PRECISIONS = ("fp32", "bf16")

PROBE_SIDE = 64

COPIES = 1.4
"""Memory really taken over the sum of activations alive: reordered copies, and room that is kept (measured: 1.35)."""

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
                self.bytes_per_pixel = _bytes_per_pixel(network, self.precision)
            wrapped = _with_layout(network, self.model, pixels)
            return self.core.compile_model(wrapped, "CPU", settings)
        except RuntimeError as exc:
            raise EngineBuildError(f"OpenVINO refuses {self.model.path.name}: {_first_line(exc)}") from exc


def _with_layout(network: Any, model: ModelFile, pixels: str) -> Any:
    """Bytes or float32 as (N, H, W, 3) at both ends of a network, in OpenVINO's own operators.

    The same as :func:`espan_deploy.pixels.with_pixels`, without the time to import onnx; OpenVINO fuses the
    scaling into the convolutions. Bytes come with a second output, the guard against non-finite values.
    """
    import openvino
    from openvino import opset13 as ops

    description = model.description
    as_bytes = pixels == "uint8"
    old, result = network.get_parameters()[0], network.get_results()[0].input_value(0)
    if description.pixels == "uint8":
        if as_bytes:
            return network
        raise InputShapeError(
            f"{model.path.name} takes bytes only, and this image has 16 bits per channel",
            hint="export the model with float pixels",
        )
    white = 255.0 if as_bytes else 1.0
    factor = np.float32(description.value_range / white)
    swapped = description.color_order == "BGR"

    def swap(node: Any) -> Any:
        return ops.gather(node, np.array([2, 1, 0]), np.array(1)) if swapped else node

    f32 = openvino.Type.f32
    source = ops.parameter([-1, -1, -1, 3], openvino.Type.u8 if as_bytes else f32)
    head = swap(ops.transpose(ops.convert(source, f32), np.array([0, 3, 1, 2])))
    head = ops.multiply(head, factor) if factor != 1 else head
    if old.get_element_type() != f32:
        head = ops.convert(head, old.get_element_type())
    for reader in old.output(0).get_target_inputs():
        reader.replace_source_output(head.output(0))

    tail = result.get_node()
    if result.get_element_type() != f32:
        tail = ops.convert(result, f32)
    tail = ops.multiply(tail, np.float32(1) / factor) if factor != 1 else tail
    tail = swap(tail)
    if not as_bytes:
        return openvino.Model([ops.transpose(tail, np.array([0, 2, 3, 1]))], [source])
    guard = ops.reduce_mean(tail, np.array([1, 2, 3]))
    rounded = ops.round(ops.clamp(tail, 0.0, 255.0), "half_to_even")
    out = ops.convert(ops.transpose(rounded, np.array([0, 2, 3, 1])), openvino.Type.u8)
    return openvino.Model([out, guard], [source])


def _bytes_per_pixel(network: Any, precision: str) -> int:
    """Peak of the activations alive at once, per low-resolution pixel, were each freed after its last use."""
    probe = network.clone()
    try:
        probe.reshape({0: [1, 3, PROBE_SIDE, PROBE_SIDE]})
    except RuntimeError:
        return 0  # a network with sizes of its own
    size = 2 if precision == "bf16" else 4
    operations = [op for op in probe.get_ordered_ops() if op.get_type_name() not in ("Constant", "Result")]
    last_use: dict[str, int] = {}
    for index, op in enumerate(operations):
        for value in op.input_values():
            last_use[value.get_node().get_name()] = index
    alive: dict[str, int] = {}
    peak = 0
    for index, op in enumerate(operations):
        if any(value.get_node().get_type_name() != "Constant" for value in op.input_values()):
            shapes = (op.output(i).get_partial_shape() for i in range(op.get_output_size()))
            alive[op.get_name()] = sum(size * int(np.prod(shape.get_max_shape())) for shape in shapes)
        peak = max(peak, sum(alive.values()))
        alive = {name: count for name, count in alive.items() if last_use.get(name, index) > index}
    return int(COPIES * peak / PROBE_SIDE**2)


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
