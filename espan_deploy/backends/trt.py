"""Running an engine of TensorRT or TensorRT-RTX: the engine on the device, and the runner that feeds it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.backends.base import EngineInfo, Images, Runner, scaled
from espan_deploy.backends.cuda_memory import Device
from espan_deploy.backends.finite import check_finite
from espan_deploy.backends.trt_module import FLAVOURS, listening, logger_of
from espan_deploy.backends.trt_slot import Slot, Streams
from espan_deploy.description import ModelDescription
from espan_deploy.errors import EngineMismatchError, InferenceError, InputShapeError
from espan_deploy.pixels import GUARD
from espan_deploy.recipes import RunSettings

SLOTS = 2
"""Chunks in flight: while one computes, the next is copied in and the last one out."""


@dataclass(frozen=True)
class Limits:
    """The engine's profile: batch, height and width, each as (min, opt, max)."""

    batch: tuple[int, int, int]
    height: tuple[int, int, int]
    width: tuple[int, int, int]


class LoadedEngine:
    """An engine on the device, shared by its runners, and given back with the last of them.

    data: bytes already held against their manifest. host_code: whether they may hold code for the host, as engines
    for later versions of TensorRT do. runtime_cache: where TensorRT-RTX's kernels are kept between runs, None for
    nowhere.
    Raises EngineMismatchError where the runtime refuses the bytes.
    """

    def __init__(
        self,
        trt: Any,
        backend: str,
        data: bytes,
        description: ModelDescription,
        device: Device,
        *,
        run: RunSettings | None = None,
        host_code: bool = False,
        runtime_cache: Path | None = None,
    ) -> None:
        self.trt, self.backend, self.description, self.device = trt, backend, description, device
        self.run = run or RunSettings()
        self._lock = threading.Lock()
        self._contexts = 0
        with device.current(), listening(trt) as messages:
            self._runtime = trt.Runtime(logger_of(trt))
            if host_code:
                self._runtime.engine_host_code_allowed = True
            self.engine = self._runtime.deserialize_cuda_engine(data)
            # Weights are copied on streams that ours do not wait for.
            device.synchronize()
        if self.engine is None:
            raise EngineMismatchError(
                f"{FLAVOURS[backend].title} refuses the engine: {messages.explanation()}",
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
        """An execution context, configured as the recipe says; to be released. Inside the device's ``current()``."""
        with self._lock, listening(self.trt) as messages:
            if self.backend == "tensorrt-rtx":
                context = self.engine.create_execution_context(self._runtime_config())
            else:
                context = self.engine.create_execution_context()
            if context is None:
                raise InferenceError(
                    f"{FLAVOURS[self.backend].title} makes no execution context: {messages.explanation()}",
                    hint="it takes memory for the largest images of the engine's profile: build one with a smaller max",
                )
            self._contexts += 1
        return context

    def release_context(self) -> None:
        """Say that a context is gone; with the last one the engine goes. Inside the device's ``current()``."""
        with self._lock:
            self._contexts -= 1
            if self._contexts == 0:
                self._runtime_cache = None
                self.engine = None
                self._runtime = None

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
        """Keep the kernels compiled so far for the next run. Inside the device's ``current()``."""
        if self._runtime_cache is not None and self._cache_path is not None:
            with self._lock:
                write(self._cache_path, bytes(memoryview(self._runtime_cache.serialize())))


class TrtRunner(Runner):
    """An engine's images, chunk by chunk through its slots.

    last_stages_ms: the last batch's time in copies and in the engine, by the device's clock. Chunks of a batch overlap,
    so the stages' sum may exceed the whole.
    info.details["cuda_graph_ratio"]: of shapes that were captured, the engine's time replayed to launched.
    """

    def __init__(
        self, loaded: LoadedEngine, *, precision: str, save: Callable[[Path, bytes], None] | None = None
    ) -> None:
        self.loaded, self.device = loaded, loaded.device
        self.description = loaded.description
        self._save = save
        run = loaded.run
        limits = loaded.limits
        details: dict[str, Any] = {
            "cuda_graph": run.cuda_graph,
            "cuda_graph_ratio": {},
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
        self._slots: list[Slot] = []
        self._streams: Streams | None = None
        self.last_stages_ms: dict[str, float] = {}
        with self.device.current():
            try:
                self._streams = Streams(self.device)
                self._slot(0)
            except BaseException:
                self._give_back()
                raise

    def _slot(self, index: int) -> Slot:
        """Made when it is first needed: a context takes memory for the profile's largest images."""
        if index == len(self._slots):
            assert self._streams is not None
            self._slots.append(Slot(self.loaded, self._streams, self.info.details))
            self.device.synchronize()  # what a context copies when it is made
        return self._slots[index]

    def _infer(self, images: Images) -> Images:
        count, height, width, _ = images.shape
        scale = self.description.scale
        out: Images = np.empty((count, height * scale, width * scale, 3), images.dtype)
        self._infer_into(images, (slice(0, height), slice(0, width)), out)
        return out

    def _infer_into(self, images: Images, kept: tuple[slice, slice], out: Images) -> None:
        limits = self.loaded.limits
        self._check_size(images.shape, limits)
        given = self._to_engine(images)
        rows, columns = scaled(kept, self.description.scale)
        guards: list[NDArray[Any]] = []
        pending: deque[tuple[Slot, int, int]] = deque()
        self.last_stages_ms = {}

        def collect() -> None:
            slot, start, real = pending.popleft()
            for stage, milliseconds in slot.wait().items():
                self.last_stages_ms[stage] = self.last_stages_ms.get(stage, 0.0) + milliseconds
            result = slot.output(self.loaded.output_name)[:real]
            values = self._from_engine(result)
            if self.loaded.guard_name:
                guards.append(slot.output(GUARD)[:real].copy())
            elif images.dtype == np.uint8:
                guards.append(np.where(np.isfinite(values).all(axis=(1, 2, 3)), 0.0, np.inf))
                values = np.rint(np.clip(values * 255, 0, 255))  # what is not finite is told of below
            with np.errstate(invalid="ignore"):
                out[start : start + real] = values[:, rows, columns]

        with self.device.current():
            try:
                for index, (start, size, real) in enumerate(chunks(len(images), limits.batch)):
                    if len(pending) == SLOTS:
                        collect()
                    slot = self._slot(index % SLOTS)
                    slot.start(given[start : start + real], size, self._output_shape(images.shape, size))
                    pending.append((slot, start, real))
                while pending:
                    collect()
            except BaseException:
                # What is still under way must not meet the next call's buffers.
                assert self._streams is not None
                self.device.settle(self._streams.all)
                raise
        if guards:
            check_finite(np.concatenate(guards))

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

    def _from_engine(self, result: NDArray[Any]) -> Images:
        """Bytes as they are, a view of the slot's; else values in [0, 1]."""
        if self.description.pixels == "uint8":
            return result
        planes = result.astype(np.float32).transpose(0, 2, 3, 1)
        values: Images = self._ordered(planes) / np.float32(self.description.value_range)
        return values

    def _ordered(self, images: NDArray[Any]) -> NDArray[Any]:
        return images if self.description.color_order == "RGB" else images[..., ::-1]

    def _output_shape(self, images: tuple[int, ...], count: int) -> tuple[int, ...]:
        height, width = (side * self.description.scale for side in images[1:3])
        return (count, height, width, 3) if self.description.pixels == "uint8" else (count, 3, height, width)

    def close(self) -> None:
        """Give back streams and memory, and keep the kernels that were compiled."""
        if self._streams is None:
            return
        with self.device.current():
            try:
                if self._save is not None:
                    self.loaded.save_runtime_cache(self._save)
            finally:
                self._give_back()

    def _give_back(self) -> None:
        if self._streams is not None:
            self.device.settle(self._streams.all)
        for slot in self._slots:
            slot.close()
        self._slots.clear()
        if self._streams is not None:
            self._streams.close()
            self._streams = None


def chunks(count: int, batch: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(start, batch size, images in it) of each engine call for ``count`` images: as few calls as the profile allows,
    and as even as they can be. A size above the images in it is the profile's least, to be filled up.
    """
    low, _, high = batch
    calls = -(-count // high)
    edges = [count * index // calls for index in range(calls + 1)]
    return [(start, max(low, stop - start), stop - start) for start, stop in pairwise(edges)]
