"""A GPU made of numpy, and an engine made of ONNX Runtime: the runner's bookkeeping without any hardware.

Streams run nothing until they are waited for, so that a missing dependency shows as a wrong image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.errors import InferenceError


class Event:
    """time_since counts what ran on the stream in between: a millisecond each."""

    def __init__(self) -> None:
        self.recorded: tuple[Stream, int] | None = None

    def time_since(self, earlier: Event) -> float:
        assert self.recorded is not None
        assert earlier.recorded is not None
        (stream, after), (other, before) = self.recorded, earlier.recorded
        assert stream is other
        assert stream.done >= after >= before
        return float(after - before)

    def record(self, stream: Stream) -> None:
        self.recorded = (stream, len(stream.queue))

    def synchronize(self) -> None:
        if self.recorded is not None:
            stream, position = self.recorded
            stream.run_to(position)


class Stream:
    handles = 0

    def __init__(self) -> None:
        Stream.handles += 1
        self.handle = Stream.handles
        self.queue: list[Callable[[], None]] = []
        self.done = 0

    def wait_for_event(self, event: Event) -> None:
        recorded = event.recorded
        assert recorded is not None
        self.queue.append(lambda: recorded[0].run_to(recorded[1]))

    def run_to(self, position: int) -> None:
        while self.done < position:
            self.done += 1
            self.queue[self.done - 1]()

    def synchronize(self) -> None:
        self.run_to(len(self.queue))


class Buffer:
    def __init__(self, device: Device, nbytes: int) -> None:
        self.device, self.nbytes = device, nbytes
        device.next_address += 1
        self.address = device.next_address
        device.memory[self.address] = np.full(nbytes, 0xA5, np.uint8)

    def free(self) -> None:
        self.device.memory.pop(self.address, None)


class Graph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work, self.launches, self.freed = work, 0, False

    def launch(self, stream: Stream) -> None:
        self.launches += 1
        stream.queue.extend(self.work)

    def free(self) -> None:
        self.freed = True


class Device:
    name, capability = "Numpy card", "8.6"

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.next_address = 1000
        self.entered = 0
        self.limit = 2**40
        self.graphs: list[Graph] = []
        self.streams: list[Stream] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        self.entered += 1
        try:
            yield
        except MemoryError as exc:
            raise InferenceError(f"{self.name} is out of memory: {exc}") from exc
        finally:
            self.entered -= 1

    def allocate(self, nbytes: int) -> Buffer:
        assert self.entered
        if nbytes > self.limit:
            raise MemoryError(f"{nbytes} bytes")
        return Buffer(self, nbytes)

    def pinned(self, nbytes: int) -> np.ndarray:
        return np.full(nbytes, 0x5A, np.uint8)

    def stream(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    def event(self) -> Event:
        return Event()

    def copy_in(self, target: Buffer, source: np.ndarray, stream: Stream) -> None:
        stream.queue.append(lambda: self.memory[target.address].__setitem__(slice(source.nbytes), source))

    def copy_out(self, target: np.ndarray, source: Buffer, stream: Stream) -> None:
        stream.queue.append(lambda: target.__setitem__(slice(None), self.memory[source.address][: target.nbytes]))

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        start = len(stream.queue)
        work()
        captured, stream.queue[start:] = stream.queue[start:], []
        self.graphs.append(Graph(captured))
        return self.graphs[-1]

    def stream_of(self, handle: int) -> Stream:
        return next(stream for stream in self.streams if stream.handle == handle)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.runs: list[tuple[int, ...]] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "input"
        self.shape = tuple(shape)
        low, _, high = self.engine.profile
        return all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address in self.engine.device.memory

    def execute_async_v3(self, handle: int) -> bool:
        device, shape, addresses = self.engine.device, self.shape, dict(self.addresses)

        def work() -> None:
            dtype = np.dtype(self.engine.types["input"])
            nbytes = int(np.prod(shape)) * dtype.itemsize
            values = device.memory[addresses["input"]][:nbytes].view(dtype).reshape(shape)
            results = self.engine.evaluator.run(values)
            for name, result in zip(self.engine.outputs, results, strict=True):
                flat = np.ascontiguousarray(result).reshape(-1).view(np.uint8)
                device.memory[addresses[name]][: flat.size] = flat
            self.runs.append(shape)

        if self.engine.fail:
            return False
        device.stream_of(handle).queue.append(work)
        return True


class Engine:
    """As much of ICudaEngine as the runner asks for."""

    def __init__(self, model: onnx.ModelProto, device: Device, profile: Any) -> None:
        self.device, self.profile, self.fail = device, profile, False
        self.evaluator = GraphEvaluator(model)
        values = [*model.graph.input, *model.graph.output]
        self.types = {v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in values}
        self.outputs = [v.name for v in model.graph.output]
        self.num_io_tensors = len(values)
        self.contexts: list[Context] = []
        self.configs: list[Any] = []

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "input" else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return self.types[name]

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        assert (name, index) == ("input", 0)
        return self.profile

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(
            create_runtime_cache=RuntimeCache,
            set_runtime_cache=lambda cache: setattr(config, "cache", cache),
            cache=None,
        )
        return config

    def create_execution_context(self, config: Any = None) -> Context:
        self.configs.append(config)
        self.contexts.append(Context(self))
        return self.contexts[-1]


class RuntimeCache:
    def __init__(self) -> None:
        self.content = b"compiled"

    def deserialize(self, data: bytes) -> bool:
        self.content = bytes(data) + b"+"
        return True

    def serialize(self) -> bytes:
        return self.content


def module(engine: Engine | None) -> Any:
    """The parts of the tensorrt module that running needs."""

    class Logger:
        def __init__(self) -> None:
            pass

    def runtime(logger: Any) -> Any:
        def deserialize(data: bytes) -> Engine | None:
            if engine is None:
                logger.log(SimpleNamespace(name="ERROR"), "not for this GPU")
            return engine

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    return SimpleNamespace(
        ILogger=Logger,
        Runtime=runtime,
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        nptype=np.dtype,
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(LAZY="lazy", EAGER="eager", NONE="none"),
        CudaGraphStrategy=SimpleNamespace(DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole"),
        __version__="9.9",
    )
