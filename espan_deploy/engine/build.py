"""ONNX file + recipe -> engine file + manifest, through the precision gate and the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from espan_deploy import __version__, backends
from espan_deploy.backends import trt_module
from espan_deploy.backends.base import Runner
from espan_deploy.backends.cuda_memory import Device, gpu
from espan_deploy.backends.manifest import (
    ENGINE_SUFFIX,
    Manifest,
    changes,
    flatten,
    key_of,
    read_manifest,
)
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.backends.trt import LoadedEngine, TrtRunner
from espan_deploy.backends.trt_build import BuiltEngine, Tensor, build_engine
from espan_deploy.backends.trt_module import BuildProgress
from espan_deploy.description import ModelDescription, description_from_metadata
from espan_deploy.engine import cache
from espan_deploy.engine.reduce import Calibration, Reduction, Source, described, source_of
from espan_deploy.errors import BackendUnavailableError, EngineMismatchError, VerificationError
from espan_deploy.files import cache_folder
from espan_deploy.precision.gate import compare, graph_upscaler, runner_upscaler
from espan_deploy.precision.half import value_types
from espan_deploy.precision.images import VerifyImage, fitted
from espan_deploy.precision.keep import KeepFp32
from espan_deploy.recipes import ENGINE_BACKENDS, Recipe, for_sizes

Report = Callable[[str, BuildProgress | None], None]
"""Told what is being done, with the builder's own progress while it builds."""

TIMING_CACHE = "timing"


@dataclass(frozen=True)
class EngineResult:
    """An engine that is ready.

    path: of the engine; its manifest lies beside it. from_cache: nothing was built. reasons: why it was built though
    an engine of this recipe and model was there, part by part ("profile.height.max: 512 -> 1024").
    """

    path: Path
    manifest: Manifest
    from_cache: bool
    reasons: tuple[str, ...] = ()


def engine_from_onnx(
    model: Path | ModelFile,
    recipe: Recipe,
    *,
    output: Path | None = None,
    keep_fp32: KeepFp32 | None = None,
    verify: Path | None = None,
    calibration: Calibration | None = None,
    force: bool = False,
    report: Report | None = None,
) -> EngineResult:
    """Build what a recipe says from a described FP32 ONNX file, or take it from the cache.

    model: the file, or one already read. output: where to put a copy; None leaves it in the cache.
    keep_fp32: layers, or "auto"; None takes the recipe's.
    verify: folder of images for the precision gate; None generates some. calibration: how INT8 is made.
    force: build though it is in the cache.
    Raises ExportError for a model that cannot be used, VerificationError where the gate says no, EngineBuildError and
    BackendUnavailableError as the backend has it, InputError where files cannot be read or written.
    """
    say = report or (lambda _text, _progress: None)
    source = source_of(model if isinstance(model, ModelFile) else read_model(model))
    recipe = for_sizes(recipe, least=source.description.min_size, multiple=source.description.size_multiple)
    runtime = _Runtime.of(recipe)
    reduction = Reduction.of(source, recipe, keep=keep_fp32, verify=verify, calibration=calibration)
    parts = _parts(source, recipe, reduction, runtime)
    key = key_of(parts)
    path = cache.engine_path(key, runtime.suffix)
    manifest, problem = cache.lookup(path, key)
    if manifest is not None and not force:
        return _deliver(EngineResult(path, manifest, True), output)
    with cache.lock(path, waiting=lambda: say(f"waiting: another process is building {path.name}", None)):
        manifest, problem = cache.lookup(path, key)
        if manifest is not None and not force:
            return _deliver(EngineResult(path, manifest, True), output)
        reasons = (problem,) if problem else _reasons(recipe.name, source.name, parts, output)
        graph, gate = reduction.graph(source, recipe, lambda text: say(text, None))
        built = runtime.build(graph, recipe, say)
        gate |= runtime.check(built, source, reduction.judging(recipe), reduction.images, say)
        manifest = _manifest(source, recipe, runtime, parts, graph=graph, built=built, gate=gate)
        cache.store(path, built.data, manifest)
    return _deliver(EngineResult(path, manifest, False, reasons), output)


def graph_from_onnx(
    model: Path | ModelFile,
    recipe: Recipe,
    *,
    keep_fp32: KeepFp32 | None = None,
    verify: Path | None = None,
    calibration: Calibration | None = None,
    report: Report | None = None,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph alone that a recipe asks for, in its pixels and precision, and the gate's report, empty for FP32.

    Arguments and errors are those of ``engine_from_onnx``.
    """
    source = source_of(model if isinstance(model, ModelFile) else read_model(model))
    say = report or (lambda _text, _progress: None)
    reduction = Reduction.of(source, recipe, keep=keep_fp32, verify=verify, calibration=calibration)
    return reduction.graph(source, recipe, lambda text: say(text, None))


def _parts(source: Source, recipe: Recipe, reduction: Reduction, runtime: _Runtime) -> dict[str, Any]:
    """What the engine is made of: any difference in it is another engine."""
    return {
        "onnx_sha256": source.sha256,
        "backend_version": runtime.version,
        "tool_version": __version__,
        "device": runtime.device_name,
        "device_capability": runtime.capability,
        **flatten(recipe.settings()),
        **reduction.parts(recipe),
    }


def _reasons(recipe: str, name: str, parts: dict[str, Any], output: Path | None) -> tuple[str, ...]:
    """What changed since the engine at the output, or else the newest of this recipe and model, was built."""
    previous = cache.closest(recipe, name)
    if output is not None and output.exists():
        try:
            previous = read_manifest(output)
        except EngineMismatchError:
            return (f"{output} has no sound manifest",)
    return () if previous is None else changes(previous.parts, parts)


def _manifest(
    source: Source,
    recipe: Recipe,
    runtime: _Runtime,
    parts: dict[str, Any],
    *,
    graph: onnx.ModelProto,
    built: BuiltEngine,
    gate: dict[str, Any],
) -> Manifest:
    description = description_from_metadata({entry.key: entry.value for entry in graph.metadata_props})
    assert description is not None
    return Manifest(
        name=source.name,
        recipe=recipe.name,
        backend=recipe.backend,
        backend_version=built.backend_version,
        tool_version=__version__,
        key=key_of(parts),
        parts=parts,
        settings=_plain(recipe.settings()),
        description=_plain(asdict(description)),
        onnx_sha256=source.sha256,
        graph_sha256=hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest(),
        engine_sha256=hashlib.sha256(built.data).hexdigest(),
        engine_bytes=len(built.data),
        compute_capability=_capabilities(recipe, runtime),
        device=runtime.device_name,
        tensors=tuple(_plain(asdict(tensor)) for tensor in built.tensors),
        layers=tuple(asdict(layer) for layer in built.layers),
        warnings=built.warnings,
        gate=_plain(gate),
        run=asdict(recipe.run),
        build_seconds=built.build_seconds,
        peak_host_mib=built.peak_host_mib,
        allocator_mib=built.allocator_mib,
    )


def _capabilities(recipe: Recipe, runtime: _Runtime) -> tuple[str, ...]:
    """What the engine runs on: what TensorRT-RTX was told, or the GPU that TensorRT built on."""
    if recipe.backend == "tensorrt-rtx" and recipe.target.compute_capability:
        return recipe.target.compute_capability
    return (runtime.capability,) if runtime.capability else ()


def _plain(document: Any) -> Any:
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(document))


def _deliver(result: EngineResult, output: Path | None) -> EngineResult:
    if output is None:
        return result
    cache.store(output, result.path.read_bytes(), result.manifest)
    return replace(result, path=output)


@dataclass(frozen=True)
class _Runtime:
    """What builds: a backend, its version, and the GPU it builds on, where it needs one."""

    version: str
    suffix: str
    module: Any = None
    device: Device | None = None

    @property
    def device_name(self) -> str:
        return self.device.name if self.device else ""

    @property
    def capability(self) -> str:
        return self.device.capability if self.device else ""

    @classmethod
    def of(cls, recipe: Recipe) -> _Runtime:
        """Raises BackendUnavailableError where the recipe's backend is not installed, or its GPU is not there."""
        if recipe.backend not in ENGINE_BACKENDS:
            from importlib.metadata import version

            backends.get(recipe.backend).require()
            return cls(version(recipe.backend), ".onnx")
        module = trt_module.load_module(recipe.backend)
        device = None
        target = recipe.target.compute_capability
        if recipe.backend == "tensorrt" or not target:
            try:
                device = gpu()
            except BackendUnavailableError as exc:
                raise BackendUnavailableError(
                    f"the recipe {recipe.name!r} builds on the GPU itself, and {exc.message}",
                    hint="a recipe of tensorrt-rtx that names its compute capability builds anywhere: a6000-rtx-fp16",
                ) from exc
            if target and device.capability not in target:
                raise BackendUnavailableError(
                    f"the recipe {recipe.name!r} is for compute capability {', '.join(target)}; {device.name} is "
                    f"{device.capability}",
                    hint="take the recipe this-gpu-fp16",
                )
        return cls(module.__version__, ENGINE_SUFFIX, module, device)

    def build(self, graph: onnx.ModelProto, recipe: Recipe, say: Report) -> BuiltEngine:
        data = graph.SerializeToString(deterministic=True)
        if self.module is None:
            return BuiltEngine(data, self.version, _graph_tensors(graph))
        say(f"building for {', '.join(recipe.target.compute_capability) or self.device_name}", None)
        timing = self._timing_path()
        known = timing.read_bytes() if timing.is_file() else None
        built = build_engine(
            self.module, data, recipe, timing_cache=known, progress=lambda progress: say("building", progress)
        )
        if built.timing_cache:
            cache.write_file(timing, built.timing_cache)
        return built

    def _timing_path(self) -> Path:
        """TensorRT's measurements hold for one version and one kind of GPU."""
        kind = hashlib.sha256(self.device_name.encode()).hexdigest()[:8]
        return cache_folder() / TIMING_CACHE / f"{self.version}-{kind}.timing"

    def check(
        self, built: BuiltEngine, source: Source, recipe: Recipe, images: Sequence[VerifyImage], say: Report
    ) -> dict[str, Any]:
        """The gate for the engine itself, where this machine can run it: on the GPU it was built on, unless it holds no
        weights, and for OpenVINO's bfloat16, which is no graph's type. Raises VerificationError.
        """
        if (self.device is None and recipe.precision != "bf16") or recipe.build.weights == "stripped":
            return {}
        say(f"comparing the engine with FP32 on {self.device_name or 'the CPU'}", None)
        description = described(source, recipe)
        with self._runner(built, source, recipe, description) as runner:
            if isinstance(runner, TrtRunner):
                limits = runner.loaded.limits
                sides = {"height": limits.height[::2], "width": limits.width[::2]}
                images = fitted(images, description.scale, multiple=description.size_multiple, **sides)
            reference = graph_upscaler(source.model, source.description)
            comparison = compare(reference, runner_upscaler(runner), images)
        problems = comparison.violations(recipe.budget)
        if problems:
            raise VerificationError(
                f"the engine is outside its budget: {'; '.join(problems)}. Measured: {comparison.summary()}",
                hint="take a recipe in FP32, or keep layers in FP32 with --keep-fp32",
            )
        return {"engine_comparison": comparison.to_dict(), "budget": asdict(recipe.budget)}

    def _runner(self, built: BuiltEngine, source: Source, recipe: Recipe, described: ModelDescription) -> Runner:
        if self.device is None:
            file = ModelFile(Path(f"{source.name}.onnx"), built.data, described)
            return backends.get(recipe.backend).open(file, precision="bf16")
        loaded = LoadedEngine(
            self.module,
            recipe.backend,
            built.data,
            described,
            self.device,
            run=recipe.run,
            host_code=recipe.target.version_compatible,
        )
        return TrtRunner(loaded, precision=recipe.precision)


def _graph_tensors(graph: onnx.ModelProto) -> tuple[Tensor, ...]:
    """Inputs and outputs of a graph that is its own engine."""
    types = value_types(graph)
    tensors = []
    for mode, values in (("input", graph.graph.input), ("output", graph.graph.output)):
        for value in values:
            dims = value.type.tensor_type.shape.dim
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(types[value.name]))
            tensors.append(Tensor(value.name, mode, dtype, shape))
    return tuple(tensors)


def describe_engine(path: Path) -> Manifest:
    """The manifest of an engine file, after its bytes were held against it. Raises as ``read_engine`` does."""
    from espan_deploy.backends.manifest import read_engine

    return read_engine(path)[1]
