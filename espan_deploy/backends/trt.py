"""Running an engine of TensorRT or TensorRT-RTX: copies and kernels on streams of their own.

What needs a GPU here has run on none of this project's test machines: see docs/hardware.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.backends.base import EngineInfo, Images, Runner
from espan_deploy.backends.finite import check_finite
from espan_deploy.backends.trt_module import FLAVOURS, Messages, make_logger
from espan_deploy.description import ModelDescription
from espan_deploy.errors import EngineMismatchError, InferenceError, InputShapeError
from espan_deploy.pixels import GUARD
from espan_deploy.recipes import RunSettings

SLOTS = 2
"""Chunks in flight: while one computes, the next is copied in and the last one out."""

TRIALS = 5
"""Runs of each kind when launches and graph replay are compared."""


@dataclass(frozen=True)
class Limits:
    """The engine's profile: batch, height and width, each as (min, opt, max)."""

    batch: tuple[int, int, int]
    height: tuple[int, int, int]
    width: tuple[int, int, int]


class LoadedEngine:
    """An engine on the device, shared by its runners.

    data: bytes already held against their manifest. runtime_cache: where TensorRT-RTX's kernels are kept between
    runs, None for nowhere.
    Raises EngineMismatchError where the runtime refuses the bytes.
    """

    def __init__(
        self,
        trt: Any,
        backend: str,
        data: bytes,
        description: ModelDescription,
        device: Any,
        *,
        run: RunSettings | None = None,
        runtime_cache: Path | None = None,
    ) -> None:
        self.trt, self.backend, self.description, self.device = trt, backend, description, device
        self.run = run or RunSettings()
        self.messages = Messages()
        self.lock = threading.Lock()
        with device.current():
            self._runtime = trt.Runtime(make_logger(trt, self.messages))
            self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise EngineMismatchError(
                f"{FLAVOURS[backend].title} refuses the engine: {self.messages.explanation()}",
                hint="build it again for this GPU and this version",
            )
        self._cache_path = runtime_cache
        self._runtime_cache: Any = None
        self.input_name, self.output_name, self.guard_name = self._names()
        self.limits = self._limits()
        self.dtypes = {name: np.dtype(trt.nptype(self.engine.get_tensor_dtype(name))) for name in self.tensor_names}

    @property
    def tensor_names(self) -> list[str]:
        """Inputs and outputs."""
        return [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]

    def _names(self) -> tuple[str, str, str | None]:
        inputs: list[str] = []
        outputs: list[str] = []
        for name in self.tensor_names:
            is_input = self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(name)
        images = [name for name in outputs if name != GUARD]
        if len(inputs) != 1 or len(images) != 1:
            raise EngineMismatchError(f"the engine has inputs {inputs} and outputs {outputs}, expected one image each")
        return inputs[0], images[0], GUARD if GUARD in outputs else None

    def _limits(self) -> Limits:
        low, best, high = (tuple(d) for d in self.engine.get_tensor_profile_shape(self.input_name, 0))
        axes = (0, 1, 2) if self.description.pixels == "uint8" else (0, 2, 3)
        batch, height, width = ((low[axis], best[axis], high[axis]) for axis in axes)
        return Limits(batch, height, width)

    def create_context(self) -> Any:
        """An execution context, configured as the recipe says."""
        with self.lock, self.device.current():
            if self.backend == "tensorrt-rtx":
                config = self._runtime_config()
                context = self.engine.create_execution_context(config)
            else:
                context = self.engine.create_execution_context()
        if context is None:
            raise InferenceError(f"no execution context: {self.messages.explanation()}")
        return context

    def _runtime_config(self) -> Any:
        """TensorRT-RTX's own: kept kernels, kernels for the very shape, and its own CUDA graphs."""
        config = self.engine.create_runtime_config()
        strategies = self.trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, self.run.specialization.upper())
        graphs = self.trt.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if self.run.cuda_graph else graphs.DISABLED
        if self._cache_path is not None:
            if self._runtime_cache is None:
                self._runtime_cache = config.create_runtime_cache()
                # One of another driver or version is refused by the runtime, which then starts afresh.
                with suppress(OSError):
                    self._runtime_cache.deserialize(self._cache_path.read_bytes())
            config.set_runtime_cache(self._runtime_cache)
        return config

    def save_runtime_cache(self, write: Callable[[Path, bytes], None]) -> None:
        """Keep the kernels compiled so far for the next run."""
        if self._runtime_cache is not None and self._cache_path is not None:
            with self.lock, self.device.current():
                write(self._cache_path, bytes(memoryview(self._runtime_cache.serialize())))


class TrtRunner(Runner):
    """One execution context with its streams and buffers.

    last_stages_ms: the last batch's time in copies and in the engine, by the device's clock. Chunks of a batch overlap,
    so the stages' sum may exceed the whole.
    """

    def __init__(
        self, loaded: LoadedEngine, *, precision: str, save: Callable[[Path, bytes], None] | None = None
    ) -> None:
        self.loaded, self.device = loaded, loaded.device
        self.description = loaded.description
        self._save = save
        self._context = loaded.create_context()
        run = loaded.run
        limits = loaded.limits
        details: dict[str, Any] = {
            "cuda_graph": run.cuda_graph,
            "slots": SLOTS,
            "max_batch": limits.batch[2],
            "max_height": limits.height[2],
            "max_width": limits.width[2],
        }
        if loaded.backend == "tensorrt-rtx":
            details["specialization"] = run.specialization
        self.info = EngineInfo(
            loaded.backend,
            loaded.trt.__version__,
            f"{self.device.name} ({self.device.capability})",
            precision,
            details=details,
        )
        with self.device.current():
            self._streams = {name: self.device.stream() for name in ("in", "run", "out")}
            self._slots = [_Slot(self.device) for _ in range(SLOTS)]
        self._graphs: dict[tuple[Any, ...], Any] = {}
        self.last_stages_ms: dict[str, float] = {}

    def _infer(self, images: Images) -> Images:
        limits = self.loaded.limits
        self._check_size(images.shape, limits)
        values = self._to_engine(images)
        scale = self.description.scale
        results: list[NDArray[Any]] = []
        guards: list[NDArray[Any]] = []
        chunks = _chunks(images.shape[0], limits.batch)
        self.last_stages_ms = {}
        pending: list[tuple[_Slot, int, int]] = []

        def collect() -> None:
            slot, count, real = pending.pop(0)
            slot.copied_out.synchronize()
            for stage, milliseconds in slot.stages_ms().items():
                self.last_stages_ms[stage] = self.last_stages_ms.get(stage, 0.0) + milliseconds
            shape = self._output_shape(count, images.shape[1] * scale, images.shape[2] * scale)
            results.append(slot.read(self.loaded.output_name, shape, self.loaded.dtypes)[:real].copy())
            if self.loaded.guard_name:
                guards.append(slot.read(GUARD, (count,), self.loaded.dtypes)[:real].copy())

        with self.device.current():
            for index, (start, count, real) in enumerate(chunks):
                if len(pending) == SLOTS:
                    collect()
                slot = self._slots[index % SLOTS]
                block = values[start : start + real]
                if count > real:  # below the profile's smallest batch: filled up, and cut off again
                    block = np.concatenate([block, np.repeat(block[-1:], count - real, 0)])
                self._enqueue(slot, np.ascontiguousarray(block), scale)
                pending.append((slot, count, real))
            while pending:
                collect()
        if guards:
            check_finite(np.concatenate(guards))
        return self._from_engine(np.concatenate(results), images.dtype)

    def _enqueue(self, slot: _Slot, block: NDArray[Any], scale: int) -> None:
        """Copy in, run and copy out, each on its own stream, each waiting for the one before."""
        loaded, streams = self.loaded, self._streams
        height, width = self._sides(block.shape)
        out_shape = self._output_shape(block.shape[0], height * scale, width * scale)
        sizes = {loaded.input_name: block.nbytes}
        sizes[loaded.output_name] = int(np.prod(out_shape)) * loaded.dtypes[loaded.output_name].itemsize
        if loaded.guard_name:
            sizes[GUARD] = block.shape[0] * loaded.dtypes[GUARD].itemsize
        if slot.reserve(sizes):
            self._forget_graphs(slot)
        slot.write(loaded.input_name, block)
        slot.began.record(streams["in"])
        self.device.copy_in(slot.buffers[loaded.input_name], slot.host(loaded.input_name, sizes), streams["in"])
        slot.copied_in.record(streams["in"])
        streams["run"].wait_for_event(slot.copied_in)
        slot.launched.record(streams["run"])
        self._launch(slot, block.shape)
        slot.computed.record(streams["run"])
        streams["out"].wait_for_event(slot.computed)
        slot.fetching.record(streams["out"])
        for name in sizes:
            if name != loaded.input_name:
                self.device.copy_out(slot.host(name, sizes), slot.buffers[name], streams["out"])
        slot.copied_out.record(streams["out"])

    def _launch(self, slot: _Slot, shape: tuple[int, ...]) -> None:
        stream = self._streams["run"]

        def enqueue() -> None:
            self._bind(slot, shape)
            if not self._context.execute_async_v3(stream.handle):
                raise InferenceError(f"{self.info.backend} failed: {self.loaded.messages.explanation()}")

        key = (id(slot), *shape)
        if self.info.backend != "tensorrt" or not self.loaded.run.cuda_graph:
            enqueue()  # TensorRT-RTX captures by itself
        elif key not in self._graphs:
            enqueue()  # once outside: the first run of a shape may allocate, which no capture survives
            stream.synchronize()
            self._graphs[key] = self._faster(enqueue, stream)
        elif self._graphs[key] is None:
            enqueue()
        else:
            self._graphs[key].launch(stream)

    def _faster(self, enqueue: Callable[[], None], stream: Any) -> Any:
        """A captured graph where replaying it measures faster than launching anew, else None."""
        graph = self.device.capture(stream, enqueue)

        def seconds(work: Callable[[], None]) -> float:
            started = time.perf_counter()
            for _ in range(TRIALS):
                work()
            stream.synchronize()
            return time.perf_counter() - started

        launched, replayed = seconds(enqueue), seconds(lambda: graph.launch(stream))
        self.info.details["cuda_graph_ratio"] = replayed / launched
        if replayed < launched:
            return graph
        graph.free()
        return None

    def _bind(self, slot: _Slot, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(self.loaded.input_name, shape):
            raise InputShapeError(f"the engine refuses {shape}: {self.loaded.messages.explanation()}")
        for name, buffer in slot.buffers.items():
            if not self._context.set_tensor_address(name, buffer.address):
                raise InferenceError(f"the engine refuses an address for {name}: {self.loaded.messages.explanation()}")

    def _check_size(self, shape: tuple[int, ...], limits: Limits) -> None:
        for size, (low, _, high) in zip(shape[1:3], (limits.height, limits.width), strict=True):
            if not low <= size <= high:
                raise InputShapeError(
                    f"input {shape[1]}x{shape[2]} is outside of the engine's profile, {limits.height[0]}x"
                    f"{limits.width[0]} to {limits.height[2]}x{limits.width[2]}",
                    hint=f"cut it into tiles with --tile {min(limits.height[2], limits.width[2])}, "
                    "or build an engine with a larger profile",
                )

    def _to_engine(self, images: Images) -> NDArray[Any]:
        if self.description.pixels == "uint8":
            if images.dtype != np.uint8:
                raise InputShapeError(
                    "the engine takes bytes only, and this image has 16 bits per channel",
                    hint='build it with pixels = "float16" in its recipe',
                )
            return images
        scale = self.description.value_range / (255 if images.dtype == np.uint8 else 1)
        planes = self._ordered(images).transpose(0, 3, 1, 2).astype(np.float32) * np.float32(scale)
        return np.ascontiguousarray(planes.astype(self.description.pixels))

    def _from_engine(self, result: NDArray[Any], dtype: Any) -> Images:
        if self.description.pixels == "uint8":
            return result
        planes = result.astype(np.float32).transpose(0, 2, 3, 1)
        values: Images = self._ordered(planes) / np.float32(self.description.value_range)
        if dtype == np.uint8:
            check_finite(np.where(np.isfinite(values).all(axis=(1, 2, 3)), 0.0, np.inf))
            rounded: Images = np.rint(np.clip(values * 255, 0, 255)).astype(np.uint8)
            return rounded
        return np.ascontiguousarray(values)

    def _ordered(self, images: NDArray[Any]) -> NDArray[Any]:
        return images if self.description.color_order == "RGB" else images[..., ::-1]

    def _sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return (shape[1], shape[2]) if self.description.pixels == "uint8" else (shape[2], shape[3])

    def _output_shape(self, count: int, height: int, width: int) -> tuple[int, ...]:
        return (count, height, width, 3) if self.description.pixels == "uint8" else (count, 3, height, width)

    def _forget_graphs(self, slot: _Slot) -> None:
        for key in [key for key in self._graphs if key[0] == id(slot)]:
            graph = self._graphs.pop(key)
            if graph is not None:
                graph.free()

    def close(self) -> None:
        """Give back streams and memory, and keep the kernels that were compiled."""
        if self._context is None:
            return
        if self._save is not None:
            self.loaded.save_runtime_cache(self._save)
        with self.device.current():
            for slot in self._slots:
                self._forget_graphs(slot)
                slot.free()
            self._streams.clear()
            self._context = None


class _Slot:
    """Buffers for one chunk, on the device and pinned on the host, and the events of its way."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.buffers: dict[str, Any] = {}
        self._hosts: dict[str, NDArray[np.uint8]] = {}
        self.began, self.copied_in = device.event(), device.event()
        self.launched, self.computed = device.event(), device.event()
        self.fetching, self.copied_out = device.event(), device.event()

    def stages_ms(self) -> dict[str, float]:
        """Of the chunk that was copied out."""
        return {
            "copy in": self.copied_in.time_since(self.began),
            "engine": self.computed.time_since(self.launched),
            "copy out": self.copied_out.time_since(self.fetching),
        }

    def reserve(self, sizes: dict[str, int]) -> bool:
        """Grow to at least these sizes; whether an address changed."""
        grown = False
        for name, nbytes in sizes.items():
            buffer = self.buffers.get(name)
            if buffer is None or buffer.nbytes < nbytes:
                if buffer is not None:
                    buffer.free()
                self.buffers[name] = self._device.allocate(nbytes)
                self._hosts[name] = self._device.pinned(nbytes)
                grown = True
        return grown

    def host(self, name: str, sizes: dict[str, int]) -> NDArray[np.uint8]:
        return self._hosts[name][: sizes[name]]

    def write(self, name: str, block: NDArray[Any]) -> None:
        self._hosts[name][: block.nbytes] = block.reshape(-1).view(np.uint8)

    def read(self, name: str, shape: tuple[int, ...], dtypes: dict[str, np.dtype[Any]]) -> NDArray[Any]:
        dtype = dtypes[name]
        nbytes = int(np.prod(shape)) * dtype.itemsize
        return self._hosts[name][:nbytes].view(dtype).reshape(shape)

    def free(self) -> None:
        for buffer in self.buffers.values():
            buffer.free()
        self.buffers.clear()
        self._hosts.clear()


def _chunks(count: int, batch: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(start, batch size, images in it) of each engine call for ``count`` images: the best size, then the rest."""
    low, best, _ = batch
    return [(start, max(low, min(best, count - start)), min(best, count - start)) for start in range(0, count, best)]
