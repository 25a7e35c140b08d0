"""ONNX -> engine, with TensorRT or TensorRT-RTX: the module is a parameter."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espan_deploy.backends.trt_module import (
    FLAVOURS,
    BuildProgress,
    Interruption,
    Messages,
    capability_name,
    known_capabilities,
    listening,
    logger_of,
    make_progress_monitor,
)
from espan_deploy.errors import BackendUnavailableError, EngineBuildError
from espan_deploy.recipes import Recipe, Span

MIB = 2**20

NO_DRIVER = ("CUDA driver version is insufficient", "no CUDA-capable device", "cudaError 35", "cudaError 100")

HARDWARE_LEVELS = {"same-compute-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}


@dataclass(frozen=True)
class Tensor:
    """One input or output. shape: None where it varies. profile: min, opt and max shapes of an input."""

    name: str
    mode: str
    dtype: str
    shape: tuple[int | None, ...]
    profile: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class LayerInfo:
    """A layer of the network as it was given to the builder, which fuses many of them."""

    name: str
    type: str
    dtype: str


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and what is known of it, taken from the network and the builder: reading it back needs its GPU."""

    data: bytes
    backend_version: str
    tensors: tuple[Tensor, ...]
    layers: tuple[LayerInfo, ...] = ()
    warnings: tuple[str, ...] = ()
    build_seconds: float = 0.0
    peak_host_mib: float | None = None
    allocator_mib: dict[str, int] = field(default_factory=dict)
    timing_cache: bytes | None = None


def build_engine(
    trt: Any,
    onnx_bytes: bytes,
    recipe: Recipe,
    *,
    timing_cache: bytes | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
) -> BuiltEngine:
    """Build an engine from a strongly typed ONNX graph with one image input.

    trt: the module of ``recipe.backend``. timing_cache: what an earlier build of the same version and GPU returned.
    progress: called as the build goes, from the builder's threads; what it raises stops the build.
    Raises EngineBuildError with the operator, layer or setting at fault, and BackendUnavailableError where the
    build needs a GPU that is not there.
    """
    with listening(trt) as messages:
        return _build(trt, onnx_bytes, recipe, messages, timing_cache=timing_cache, progress=progress)


def _build(
    trt: Any,
    onnx_bytes: bytes,
    recipe: Recipe,
    messages: Messages,
    *,
    timing_cache: bytes | None,
    progress: Callable[[BuildProgress], None] | None,
) -> BuiltEngine:
    title = FLAVOURS[recipe.backend].title
    interruption = Interruption()
    try:
        builder = trt.Builder(logger_of(trt))
    except (RuntimeError, TypeError) as exc:  # TensorRT's constructor answers a missing driver so
        raise BackendUnavailableError(
            f"{title} cannot start its builder: {messages.explanation()}",
            hint="TensorRT builds on the GPU itself; the recipes named -rtx- build without one",
        ) from exc
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger_of(trt))
    if not parser.parse(onnx_bytes):
        raise _parser_error(parser, messages, title)
    config = builder.create_builder_config()
    _set_target(trt, config, recipe)
    _set_build(trt, config, recipe)
    shapes = _add_profile(builder, config, network, recipe, messages)
    cache = _set_timing_cache(trt, config, recipe, timing_cache)
    monitor = make_progress_monitor(trt, progress or (lambda _: None), interruption)
    config.progress_monitor = monitor
    with _PeakMemory() as peak:
        started = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - started
    if interruption.raised is not None:
        raise interruption.raised
    if plan is None:
        raise _build_error(network, messages, title, recipe)
    return BuiltEngine(
        data=bytes(memoryview(plan)),
        backend_version=trt.__version__,
        tensors=_tensors(network, shapes),
        layers=_layers(network),
        warnings=tuple(messages.summary()),
        build_seconds=seconds,
        peak_host_mib=peak.mib,
        allocator_mib=messages.allocator_mib,
        timing_cache=bytes(memoryview(cache.serialize())) if cache is not None else None,
    )


def _network_flags(trt: Any) -> int:
    """Strongly typed: the only kind from TensorRT 11 on, a flag before."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_error(parser: Any, messages: Messages, title: str) -> EngineBuildError:
    details = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()!r}" if error.node_operator() else "the model"
        # An assertion's text is all it may have; of "false" there is nothing to read.
        reason = "" if error.desc() == "false" else f": {error.desc()}"
        details.append(f"{where}{reason} ({error.code().name})")
    names = [parser.get_error(i).node_operator() for i in range(parser.num_errors)]
    if any(operator in ("QuantizeLinear", "DequantizeLinear") for operator in names):
        hint = f"{title} computes in symmetric codes: signed int8, every zero point 0, weights per output channel"
        return EngineBuildError(f"{title} cannot take the model: {'; '.join(dict.fromkeys(details))}", hint=hint)
    return EngineBuildError(
        f"{title} cannot take the model: {'; '.join(dict.fromkeys(details)) or messages.explanation()}",
        hint=f"replace the operator {names[0]}, or run the model on another engine" if any(names) else "",
    )


def _set_target(trt: Any, config: Any, recipe: Recipe) -> None:
    target = recipe.target
    if recipe.backend == "tensorrt-rtx":
        values = []
        for capability in target.compute_capability:
            value = capability_name(trt, capability)
            if value is None:
                raise EngineBuildError(
                    f"{FLAVOURS[recipe.backend].title} {trt.__version__} cannot build for compute capability "
                    f"{capability}",
                    hint=f"it knows {', '.join(known_capabilities(trt))}",
                )
            values.append(value)
        values = values or [trt.ComputeCapability.CURRENT]
        config.num_compute_capabilities = len(values)
        for index, value in enumerate(values):
            config.set_compute_capability(value, index)
        return
    if target.hardware_compatibility != "none":
        level = HARDWARE_LEVELS[target.hardware_compatibility]
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if target.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _set_build(trt: Any, config: Any, recipe: Recipe) -> None:
    # TF32 rounds factors to FP16's eleven bits: what is to be FP32 would not be.
    config.clear_flag(trt.BuilderFlag.TF32)
    build = recipe.build
    if build.optimization_level is not None:
        config.builder_optimization_level = build.optimization_level
    if build.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, build.workspace_mib * MIB)
    if build.weights == "refit":
        config.set_flag(trt.BuilderFlag.REFIT)
    elif build.weights == "stripped":
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)


def _set_timing_cache(trt: Any, config: Any, recipe: Recipe, data: bytes | None) -> Any:
    """TensorRT's measurements of kernels; TensorRT-RTX takes none while building."""
    if recipe.backend != "tensorrt" or not recipe.build.timing_cache:
        return None
    cache = config.create_timing_cache(data or b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _add_profile(builder: Any, config: Any, network: Any, recipe: Recipe, messages: Messages) -> Shapes:
    if network.num_inputs != 1:
        raise EngineBuildError(f"the model has {network.num_inputs} inputs, expected one image")
    tensor = network.get_input(0)
    shapes = profile_shapes(tuple(tensor.shape), recipe)
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise EngineBuildError(f"the profile {shapes} is refused: {messages.explanation()}")
    return shapes


def profile_shapes(shape: tuple[int, ...], recipe: Recipe) -> Shapes:
    """Min, opt and max shape of the input, which varies where ``shape`` is -1. Bytes are (N, H, W, 3), floats
    (N, 3, H, W). Raises EngineBuildError where the model's own size lies outside of the profile.
    """
    profile = recipe.profile
    spans = [profile.batch, profile.height, profile.width]
    spans.insert(3 if recipe.pixels == "uint8" else 1, Span(3, 3, 3))
    names = ["batch", "height", "width"]
    names.insert(3 if recipe.pixels == "uint8" else 1, "channels")
    fixed = []
    for size, span, name in zip(shape, spans, names, strict=True):
        if size >= 0 and not span.min <= size <= span.max:
            raise EngineBuildError(
                f"the model's {name} is {size}, and the profile asks for {span.min} to {span.max}",
                hint="export the model with dynamic sizes, or change the recipe's profile",
            )
        fixed.append(Span(size, size, size) if size >= 0 else span)
    return tuple(s.min for s in fixed), tuple(s.opt for s in fixed), tuple(s.max for s in fixed)


def _build_error(network: Any, messages: Messages, title: str, recipe: Recipe) -> Exception:
    text = messages.explanation()
    names = sorted((network.get_layer(i).name for i in range(network.num_layers)), key=len, reverse=True)
    at = next((f" at layer {name!r}" for name in names if name and name in text), "")
    if any(sign in text for sign in NO_DRIVER):
        return BackendUnavailableError(
            f"{title} needs a GPU to build the recipe {recipe.name!r}: {text}",
            hint="name its compute capability in target.compute_capability to build without it",
        )
    hint = ""
    if any(sign in text for sign in ("OutOfMemory", "out of memory", "workspace limit")):
        hint = "raise build.workspace_mib, or lower the profile's max"
    elif "Myelin" in text and recipe.build.weights != "embedded" and recipe.backend == "tensorrt-rtx":
        hint = "TensorRT-RTX builds refittable and stripped engines only on a machine with a GPU"
    return EngineBuildError(f"{title} refuses to build{at}: {text}", hint=hint)


def _tensors(network: Any, shapes: Shapes) -> tuple[Tensor, ...]:
    def describe(tensor: Any, mode: str, profile: Shapes | None) -> Tensor:
        shape = tuple(None if size < 0 else int(size) for size in tensor.shape)
        return Tensor(tensor.name, mode, dtype_name(tensor.dtype), shape, profile)

    inputs = [describe(network.get_input(i), "input", shapes) for i in range(network.num_inputs)]
    outputs = [describe(network.get_output(i), "output", None) for i in range(network.num_outputs)]
    return (*inputs, *outputs)


def dtype_name(dtype: Any) -> str:
    """numpy's name for one of TensorRT's types: "float32", "float16", "uint8", ..."""
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "BOOL": "bool"}
    name: str = dtype.name
    return names.get(name, name.lower())


def _layers(network: Any) -> tuple[LayerInfo, ...]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return tuple(
        LayerInfo(
            layer.name, layer.type.name.lower(), dtype_name(layer.get_output_type(0)) if layer.num_outputs else ""
        )
        for layer in layers
    )


class _PeakMemory:
    """The process's largest resident memory while the block runs, in MiB; None where the system does not tell."""

    mib: float | None = None

    def __enter__(self) -> _PeakMemory:
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the mark, on Linux
        except OSError:
            self._fresh = False
        else:
            self._fresh = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._fresh:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.mib = int(line.split()[1]) / 1024
