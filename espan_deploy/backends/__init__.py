"""The inference backends, in order of preference, and the choice among them.

A backend is a module with

- ``PRECISIONS: tuple[str, ...]``: what it can compute in, the exact one ("fp32") among them;
- ``unavailable_reason() -> str | None``: why it cannot run here, None where it can;
- ``preferred_precision() -> str``: the fastest precision this hardware is made for, to be gated;
- ``open_runners(model, *, precision, threads, lanes) -> list[Runner]``: runners over one engine, for as many
  threads; their ``threads`` CPU threads are shared.

Its runtime is imported inside these functions only.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from espan_deploy.backends.base import Runner
from espan_deploy.backends.model import INT8, ModelFile
from espan_deploy.errors import BackendUnavailableError, EngineMismatchError


class BackendModule(Protocol):
    """What a backend's module offers; see above."""

    PRECISIONS: tuple[str, ...]

    def unavailable_reason(self) -> str | None: ...  # noqa: D102

    def preferred_precision(self) -> str: ...  # noqa: D102

    def open_runners(  # noqa: D102
        self, model: ModelFile, *, precision: str, threads: int | None, lanes: int
    ) -> list[Runner]: ...


@dataclass(frozen=True)
class Backend:
    """One entry of the registry.

    packages: any of which installs the runtime. remedy: the command that installs one.
    automatic: whether "auto" may take it. on_cpu: whether "auto" may measure it against the others there.
    max_lanes: at once; on a GPU more than two only hide the same transfers, on a CPU more than eight only spread the
    same cores and take memory.
    """

    name: str
    title: str
    module_name: str
    packages: tuple[str, ...]
    remedy: str
    automatic: bool = True
    on_cpu: bool = False
    max_lanes: int = 8

    @property
    def module(self) -> BackendModule:
        """The backend's own module, imported now."""
        return cast(BackendModule, import_module(self.module_name))

    @property
    def version(self) -> str:
        """Of the runtime, as its package was installed; "" where it is not."""
        return next(filter(None, map(installed_version, self.packages)), "")

    def usable_precisions(self, model: ModelFile | None = None) -> list[str]:
        """FP32, and the precision this machine is made for; of a model, those it is there in, and INT8 with them."""
        usable = dict.fromkeys(["fp32", self.module.preferred_precision()])
        if model is None:
            return list(usable)
        return [each for each in (*usable, INT8) if each in self.module.PRECISIONS and model.has(each)]

    def unavailable_reason(self) -> str | None:
        """Why this backend cannot run here, or None."""
        return self.module.unavailable_reason()

    def open(self, model: ModelFile, *, precision: str = "fp32", threads: int | None = None) -> Runner:
        """A runner with all threads. Raises BackendUnavailableError, EngineBuildError or EngineMismatchError."""
        return self.open_runners(model, precision=precision, threads=threads, lanes=1)[0]

    def open_runners(
        self, model: ModelFile, *, precision: str = "fp32", threads: int | None = None, lanes: int = 1
    ) -> list[Runner]:
        """Runners over one engine, one for each of ``lanes`` threads. Raises as :meth:`open`."""
        self.require()
        built_in_it = bool(model.backend) and precision == model.description.precision
        if precision not in self.module.PRECISIONS and not built_in_it:
            raise BackendUnavailableError(
                f"{self.title} has no precision {precision}, it has {', '.join(self.module.PRECISIONS)}"
            )
        model = model.in_precision(precision)
        return self.module.open_runners(model, precision=precision, threads=threads, lanes=lanes)

    def require(self) -> None:
        """Raise BackendUnavailableError where this backend cannot run here."""
        reason = self.unavailable_reason()
        if reason is not None:
            raise BackendUnavailableError(f"{self.title} cannot be used: {reason}", hint=self.remedy)


CPU_REMEDY = "pip install 'espan-deploy[cpu]'"
GPU_REMEDY = "pip install 'espan-deploy[gpu]' on a machine with an NVIDIA GPU and its driver"

BACKENDS: tuple[Backend, ...] = (
    Backend("tensorrt", "TensorRT", "espan_deploy.engine.tensorrt", ("tensorrt",), GPU_REMEDY, max_lanes=2),
    Backend(
        "tensorrt-rtx",
        "TensorRT-RTX",
        "espan_deploy.engine.tensorrt_rtx",
        ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
        "pip install 'espan-deploy[rtx]' pycuda",
        max_lanes=2,
    ),
    Backend(
        "onnxruntime-tensorrt",
        "ONNX Runtime's TensorRT provider",
        "espan_deploy.backends.onnxruntime_tensorrt",
        ("onnxruntime-gpu",),
        GPU_REMEDY,
        automatic=False,
        max_lanes=2,
    ),
    Backend(
        "onnxruntime-cuda",
        "ONNX Runtime's CUDA provider",
        "espan_deploy.backends.onnxruntime_cuda",
        ("onnxruntime-gpu",),
        GPU_REMEDY,
        max_lanes=2,
    ),
    Backend("openvino", "OpenVINO", "espan_deploy.backends.openvino", ("openvino",), CPU_REMEDY, on_cpu=True),
    Backend(
        "onnxruntime",
        "ONNX Runtime",
        "espan_deploy.backends.onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        CPU_REMEDY,
        on_cpu=True,
    ),
)
"""In the order in which "auto" tries them."""


def installed_version(package: str) -> str:
    """As the folder of its metadata is named; "" where it is not installed.

    The name is all that is wanted here, and importlib.metadata is not ready before a job's engine is open.
    """
    prefix = package.replace("-", "_") + "-"
    for folder in sys.path:
        with suppress(OSError):
            for name in os.listdir(folder):
                if name.startswith(prefix) and name.endswith(".dist-info"):
                    return name.removeprefix(prefix).removesuffix(".dist-info")
    return ""


@dataclass(frozen=True)
class Choice:
    """A backend and why it was taken."""

    backend: Backend
    reason: str


def get(name: str) -> Backend:
    """The backend of this name. Raises BackendUnavailableError, naming those there are."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    names = ", ".join(backend.name for backend in BACKENDS)
    raise BackendUnavailableError(f"there is no engine {name!r}", hint=f"take one of auto, {names}")


def choose(engine: str = "auto", model: ModelFile | None = None) -> Choice:
    """The backend asked for, or with "auto" the first that can run here; for an engine, the one it was built for.

    Raises BackendUnavailableError where the one asked for cannot, or none can; EngineMismatchError where an engine of
    another one was given.
    """
    if model is not None and model.backend:
        if engine not in ("auto", model.backend):
            raise EngineMismatchError(
                f"{model.path.name} is an engine of {model.backend}, not of {engine}",
                hint=f"run it with --engine {model.backend}, or give the ONNX file",
            )
        backend = get(model.backend)
        backend.require()
        return Choice(backend, "the engine was built for it")
    if engine != "auto":
        backend = get(engine)
        backend.require()
        return Choice(backend, "asked for")
    passed: list[str] = []
    for backend in BACKENDS:
        if not backend.automatic:
            continue
        reason = backend.unavailable_reason()
        if reason is None:
            because = "first choice" if not passed else "; ".join(passed)
            return Choice(backend, because)
        passed.append(f"{backend.name}: {reason}")
    raise BackendUnavailableError(f"no inference engine can be used ({'; '.join(passed)})", hint=CPU_REMEDY)


_names = [backend.name for backend in BACKENDS]
assert len(_names) == len(set(_names)), "two backends of one name"
