"""From a model file to runners on the GPU, for both TensorRTs: check or build the engine, load it, open contexts."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from espan_deploy.backends import trt_module
from espan_deploy.backends.base import Runner
from espan_deploy.backends.cuda_memory import Device, gpu_unavailable_reason
from espan_deploy.backends.manifest import ENGINE_SUFFIX, check_bytes, check_runtime, read_engine, read_manifest
from espan_deploy.backends.model import ModelFile
from espan_deploy.errors import EngineMismatchError
from espan_deploy.recipes import RunSettings, load_recipe

AT_HAND = {"tensorrt": "this-gpu-fp16", "tensorrt-rtx": "this-gpu-rtx-fp16"}
"""The recipe an ONNX file is built with when it is opened."""


def trt_unavailable_reason(name: str) -> str | None:
    """Why a backend cannot run here, or None: cheap questions first, since a GPU takes time to wake."""
    if not any(find_spec(module) for module in trt_module.FLAVOURS[name].modules):
        return f"{trt_module.FLAVOURS[name].title} is not installed"
    return gpu_unavailable_reason() or trt_module.unavailable_reason(name)


def open_trt_runners(name: str, model: ModelFile, *, precision: str, lanes: int) -> list[Runner]:
    """Runners over one engine. Raises EngineMismatchError for an engine that must not be run here, and as building
    and loading do.
    """
    from espan_deploy.backends.trt import LoadedEngine, TrtRunner
    from espan_deploy.engine.cache import cache_folder, write_file

    trt = trt_module.load_module(name)
    device = Device()
    if model.path.suffix == ENGINE_SUFFIX:
        data, manifest = model.data, read_manifest(model.path)
        check_bytes(data, manifest, str(model.path))
    else:
        data, manifest = read_engine(_build_at_hand(name, model, precision))
    check_runtime(
        manifest,
        backend=name,
        backend_version=trt.__version__,
        compute_capability=device.capability,
        gpu=device.name,
    )
    made_of = str(manifest.settings.get("precision"))
    if precision == "fp32" and made_of != "fp32":
        raise EngineMismatchError(
            f"{model.path.name} is an engine in {made_of}, and fp32 was asked for",
            hint="build one in fp32, or run the ONNX file",
        )
    kernels = cache_folder() / "runtime" / f"{manifest.engine_sha256[:40]}-{device.capability}.kernels"
    loaded = LoadedEngine(
        trt,
        name,
        data,
        manifest.model_description(),
        device,
        run=RunSettings(**manifest.run),
        runtime_cache=kernels if name == "tensorrt-rtx" else None,
    )
    return [TrtRunner(loaded, precision=made_of, save=write_file) for _ in range(lanes)]


def _build_at_hand(name: str, model: ModelFile, precision: str) -> Path:
    from espan_deploy.engine.build import engine_from_onnx

    recipe = replace(load_recipe(AT_HAND[name]), precision="fp32" if precision == "fp32" else "fp16")
    return engine_from_onnx(model.path, recipe).path
