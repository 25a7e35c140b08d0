"""From a model file to runners on the GPU, for both TensorRTs: check or build the engine, load it, open contexts."""

from __future__ import annotations

import threading
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from espan_deploy.backends import trt_module
from espan_deploy.backends.base import Images, Runner
from espan_deploy.backends.cuda_memory import Device, gpu, gpu_unavailable_reason
from espan_deploy.backends.manifest import (
    ENGINE_SUFFIX,
    Manifest,
    check_bytes,
    check_runtime,
    read_engine,
    read_manifest,
)
from espan_deploy.backends.model import ModelFile
from espan_deploy.description import Pixels
from espan_deploy.errors import EngineMismatchError
from espan_deploy.files import cache_folder
from espan_deploy.recipes import Precision, RunSettings, load_recipe

if TYPE_CHECKING:
    from espan_deploy.backends.trt import LoadedEngine, TrtRunner

AT_HAND = {"tensorrt": "this-gpu-fp16", "tensorrt-rtx": "this-gpu-rtx-fp16"}
"""The recipe an ONNX file is built with when it is opened."""


def trt_unavailable_reason(name: str) -> str | None:
    """Why a backend cannot run here, or None: cheap questions first, since a GPU takes time to wake."""
    if not any(find_spec(module) for module in trt_module.FLAVOURS[name].modules):
        return f"{trt_module.FLAVOURS[name].title} is not installed"
    return gpu_unavailable_reason() or trt_module.unavailable_reason(name)


def open_trt_runners(name: str, model: ModelFile, *, precision: str, lanes: int) -> list[Runner]:
    """Runners over one engine: that of an engine file, or those of an ONNX file, built for this GPU when first needed.

    Raises EngineMismatchError for an engine that must not be run here, and as building and loading do.
    """
    if model.path.suffix == ENGINE_SUFFIX:
        manifest = read_manifest(model.path)
        check_bytes(model.data, manifest, str(model.path))
        if manifest.settings.get("build", {}).get("weights") == "stripped":
            raise EngineMismatchError(
                f"{model.path.name} holds no weights: it was built to be given them before it runs",
                hint='build it with weights = "embedded" or "refit" to run it here',
            )
        made_of = str(manifest.settings.get("precision"))
        if precision == "fp32" and made_of != "fp32":
            raise EngineMismatchError(
                f"{model.path.name} is an engine in {made_of}, and fp32 was asked for",
                hint="build one in fp32, or run the ONNX file",
            )
        engines = _Engines(name, gpu(), {manifest.model_description().pixels: (model.data, manifest)})
    else:
        engines = _Engines(name, gpu(), {}, model, precision)
        engines.get("uint8")
    runners: list[Runner] = []
    try:
        for _ in range(lanes):
            runners.append(_TrtRunners(engines, model))
    except BaseException:
        for runner in runners:
            runner.close()
        raise
    return runners


class _Engines:
    """The engines of one model, for bytes and for floats, each loaded when first asked for and shared by all lanes."""

    def __init__(
        self,
        name: str,
        device: Device,
        known: dict[Pixels, tuple[bytes, Manifest]],
        model: ModelFile | None = None,
        precision: str = "",
    ) -> None:
        self.name, self.device, self.known, self.model, self.precision = name, device, known, model, precision
        self.trt = trt_module.load_module(name)
        self._loaded: dict[Pixels, tuple[LoadedEngine, Manifest]] = {}
        self._lock = threading.Lock()
        for _, manifest in known.values():
            self._check(manifest)

    def get(self, pixels: Pixels) -> tuple[LoadedEngine, Manifest]:
        """The engine for images of these pixels. An engine file has one, and takes what it can."""
        with self._lock:
            if self.model is None:
                pixels = next(iter(self.known))
            if pixels not in self._loaded:
                if pixels not in self.known:
                    self.known[pixels] = self._build(pixels)
                data, manifest = self.known[pixels]
                self._loaded[pixels] = self._load(data, manifest), manifest
            return self._loaded[pixels]

    def _build(self, pixels: Pixels) -> tuple[bytes, Manifest]:
        from espan_deploy.engine.build import engine_from_onnx

        assert self.model is not None
        precision: Precision = "fp32" if self.precision == "fp32" else "fp16"
        recipe = replace(load_recipe(AT_HAND[self.name]), precision=precision, pixels=pixels)
        data, manifest = read_engine(engine_from_onnx(self.model, recipe).path)
        self._check(manifest)
        return data, manifest

    def _check(self, manifest: Manifest) -> None:
        check_runtime(
            manifest,
            backend=self.name,
            backend_version=self.trt.__version__,
            compute_capability=self.device.capability,
            gpu=self.device.name,
        )

    def _load(self, data: bytes, manifest: Manifest) -> LoadedEngine:
        from espan_deploy.backends.trt import LoadedEngine

        kernels = cache_folder() / "runtime" / f"{manifest.engine_sha256[:40]}-{self.device.capability}.kernels"
        return LoadedEngine(
            self.trt,
            self.name,
            data,
            manifest.model_description(),
            self.device,
            run=RunSettings(**manifest.run),
            host_code=bool(manifest.settings.get("target", {}).get("version_compatible")),
            runtime_cache=kernels if self.name == "tensorrt-rtx" else None,
        )


class _TrtRunners(Runner):
    """One lane: a runner for bytes and one for floats, each opened when first asked for.

    last_stages_ms: of the last batch, as the runner has it that did it.
    """

    def __init__(self, engines: _Engines, model: ModelFile) -> None:
        self._engines = engines
        self._runners: dict[str, TrtRunner] = {}
        self.description = model.description
        self.last_stages_ms: dict[str, float] = {}
        self.info = self._get("uint8").info

    def _get(self, pixels: Pixels) -> TrtRunner:
        from espan_deploy.backends.trt import TrtRunner
        from espan_deploy.engine.cache import write_file

        if pixels not in self._runners:
            loaded, manifest = self._engines.get(pixels)
            made = TrtRunner(loaded, precision=str(manifest.settings.get("precision")), save=write_file)
            self._runners[pixels] = made
        return self._runners[pixels]

    def _infer(self, images: Images) -> Images:
        runner = self._of(images)
        result = runner.infer(images)
        self.last_stages_ms = runner.last_stages_ms
        return result

    def _infer_into(self, images: Images, kept: tuple[slice, slice], out: Images) -> None:
        self._of(images).infer_into(images, kept, out)

    def _of(self, images: Images) -> TrtRunner:
        return self._get("uint8" if images.dtype == np.uint8 else "float32")

    def close(self) -> None:
        """Close both."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
