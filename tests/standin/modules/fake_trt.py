"""As much of TensorRT's Python module as this project calls, on the stand-in driver: an engine is its ONNX graph.

Memory, streams and launches are the driver's, asked through its own functions; a kernel is a host function that runs
ONNX Runtime. Its rules are TensorRT's, held more strictly: one logger for a process, a graph dies with its context's
shape, a context serves one stream, the first run of a shape may allocate.
"""

from __future__ import annotations

import ctypes
import json
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from espan_deploy.backends.graph_evaluator import GraphEvaluator

__version__ = "99.1"

MAGIC = b"PLAN"
ACTIVATION_BYTES = 1 << 20
"""What a context takes. Real ones take more."""

driver = ctypes.CDLL("libcuda.so.1")
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def names(*values: str) -> Any:
    """An enumeration whose members know their name."""
    return SimpleNamespace(**{value: SimpleNamespace(name=value) for value in values})


BuilderFlag = names("TF32", "REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE")
NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
MemoryPoolType = names("WORKSPACE")
HardwareCompatibilityLevel = names("SAME_COMPUTE_CAPABILITY", "AMPERE_PLUS")
ComputeCapability = names("CURRENT", "SM80", "SM86", "SM89", "SM120")
TensorIOMode = names("INPUT", "OUTPUT")
DynamicShapesKernelSpecializationStrategy = names("LAZY", "EAGER", "NONE")
CudaGraphStrategy = names("DISABLED", "WHOLE_GRAPH_CAPTURE")
Severity = names("ERROR", "WARNING")
TYPES = {"uint8": "UINT8", "float32": "FLOAT", "float16": "HALF"}


def nptype(dtype: Any) -> Any:
    return next(np.dtype(name) for name, ours in TYPES.items() if ours == dtype.name)


class ILogger:
    """Subclassed; whoever forgets to initialise the base is caught."""

    def __init__(self) -> None:
        self.made = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.made = True


loggers: list[Any] = []


def adopt(logger: Any) -> None:
    """The first logger of the process is the one that hears everything."""
    assert logger.made
    loggers.append(logger)
    if logger is not loggers[0]:
        complain("a second logger: TensorRT goes on with the first")


def tell(severity: str, text: str) -> None:
    loggers[0].log(getattr(Severity, severity), text)


def complain(text: str) -> None:
    driver.standin_complain(text.encode())


def failed(place: str, code: int) -> None:
    """As TensorRT words what the driver answered."""
    tell("ERROR", f"[{place}] Error Code 1: Cuda Driver ({'out of memory' if code == 2 else code})")


class DeviceMemory:
    """Taken and given back as TensorRT does, which wants a current context here."""

    def __init__(self, nbytes: int) -> None:
        self.address = ctypes.c_uint64()
        self.code = driver.cuMemAlloc_v2(ctypes.byref(self.address), ctypes.c_size_t(nbytes))

    def __del__(self) -> None:
        if self.code == 0:
            driver.cuMemFree_v2(self.address)


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        self.dtype = SimpleNamespace(name=TYPES[onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name])


class Network:
    """Filled by the parser."""

    def __init__(self) -> None:
        self.data = b""
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.num_layers = 0

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        adopt(logger)
        self.network = network

    def parse(self, data: bytes) -> bool:
        graph = onnx.load_from_string(data).graph
        self.network.data = data
        self.network.inputs = [Tensor(value) for value in graph.input]
        self.network.outputs = [Tensor(value) for value in graph.output]
        return True


class Profile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.name, self.shapes = name, shapes


class TimingCache:
    def serialize(self) -> bytes:
        return b"measured"


class BuilderConfig:
    """What is asked of it is kept, for the plan."""

    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.profiles: list[Profile] = []
        self.progress_monitor: Any = None
        self.num_compute_capabilities = 0

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, nbytes: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        assert nbytes > 0

    def set_compute_capability(self, capability: Any, index: int) -> None:
        assert index < self.num_compute_capabilities
        assert capability.name

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return 0

    def create_timing_cache(self, data: bytes) -> TimingCache:
        assert isinstance(data, bytes)
        return TimingCache()

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        return isinstance(cache, TimingCache) and not ignore_mismatch


class Builder:
    def __init__(self, logger: Any) -> None:
        adopt(logger)

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 1)
        if not monitor.step_complete("Building", 0):
            return None
        monitor.phase_finish("Building")
        (profile,) = config.profiles
        head = json.dumps({"profile": profile.shapes, "flags": sorted(config.flags)}).encode()
        return b"".join((MAGIC, len(head).to_bytes(4, "little"), head, network.data))


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        adopt(logger)

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        if data[:4] != MAGIC:
            tell("ERROR", "the magic tag does not match")
            return None
        length = int.from_bytes(data[4:8], "little")
        head = json.loads(data[8 : 8 + length])
        if "VERSION_COMPATIBLE" in head["flags"] and not self.engine_host_code_allowed:
            tell("ERROR", "the engine holds host code, which is not allowed")
            return None
        weights = DeviceMemory(len(data))
        if weights.code:
            failed("defaultAllocator.cpp", weights.code)
            return None
        return Engine(onnx.load_from_string(data[8 + length :]), head, weights, self)


class Engine:
    def __init__(self, model: onnx.ModelProto, head: dict[str, Any], weights: DeviceMemory, runtime: Runtime) -> None:
        self.profile = [tuple(shape) for shape in head["profile"]]
        self.stripped = "STRIP_PLAN" in head["flags"]
        self.weights, self.runtime = weights, runtime
        self.evaluator = GraphEvaluator(model)
        self.tensors = [*map(Tensor, model.graph.input), *map(Tensor, model.graph.output)]
        self.num_io_tensors = len(self.tensors)

    def _tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index].name

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name == self.tensors[0].name else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensor(name).dtype

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert name == self.tensors[0].name
        assert index == 0
        return self.profile

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig | None = None) -> Context | None:
        if self.stripped:
            tell("ERROR", "the engine was not refitted")
            return None
        memory = DeviceMemory(ACTIVATION_BYTES)
        if memory.code:
            tell("ERROR", "[executionContext.cpp] Error Code 2: OutOfMemory (Requested size was 1048576 bytes)")
            return None
        return Context(self, memory, config)


class RuntimeCache:
    def __init__(self) -> None:
        self.content = b"compiled"

    def deserialize(self, data: bytes) -> bool:
        self.content = bytes(data) + b"+"
        return True

    def serialize(self) -> bytes:
        return self.content


class RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy: Any = None
    cuda_graph_strategy: Any = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


runs: list[tuple[int, ...]] = []
"""Shapes that were computed, in order; for the tests to look at."""

_kernels: dict[int, Any] = {}


class Context:
    """state: goes up with every change of shape or address; work captured or still pending belongs to one state.

    allocates_always: the first run of a shape may allocate, which no capture survives; here every one does.
    """

    allocates_always = False

    def __init__(self, engine: Engine, memory: DeviceMemory, config: RuntimeConfig | None) -> None:
        self.engine, self.memory, self.config = engine, memory, config
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.state = 0
        self.warm = -1
        self.stream: int | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == self.engine.tensors[0].name
        self.shape = tuple(shape)
        self.state += 1
        low, _, high = self.engine.profile
        if all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            return True
        tell("ERROR", f"{shape} is outside of the profile")
        return False

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.state += 1
        return True

    def execute_async_v3(self, handle: int) -> bool:
        if self.stream not in (None, handle):
            complain("a context was launched on two streams")
        self.stream = handle
        if set(self.addresses) != {tensor.name for tensor in self.engine.tensors}:
            tell("ERROR", "addresses are missing")
            return False
        if self.warm != self.state or self.allocates_always:
            self.warm = self.state
            if code := DeviceMemory(256).code:
                failed("runner.cpp", code)
                return False
        kernel = KERNEL(Kernel(self))
        _kernels[len(_kernels)] = kernel
        code = driver.cuLaunchHostFunc(ctypes.c_void_p(handle), kernel, None)
        if code:
            failed("runner.cpp", code)
        return code == 0


class Kernel:
    """One launch: what it will read and write when the stream comes to it."""

    def __init__(self, context: Context) -> None:
        self.context = weakref.ref(context)
        self.state, self.shape, self.addresses = context.state, context.shape, dict(context.addresses)

    def __call__(self, _data: object) -> None:
        context = self.context()
        if context is None:
            complain("a kernel ran after its context was destroyed")
            return
        if context.state != self.state:
            complain("a kernel ran after its context got another shape or address")
            return
        first, *others = context.engine.tensors
        given = self._memory(first, self.shape)
        if given is None:
            return
        results = context.engine.evaluator.run(given.copy())
        for tensor, result in zip(others, results, strict=True):
            target = self._memory(tensor, result.shape)
            if target is not None:
                target[...] = result
        runs.append(self.shape)

    def _memory(self, tensor: Tensor, shape: tuple[int, ...]) -> Any:
        dtype = nptype(tensor.dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        address = self.addresses[tensor.name]
        if not driver.standin_may_touch(ctypes.c_uint64(address), ctypes.c_size_t(nbytes), tensor.name.encode()):
            return None
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype).reshape(shape)
