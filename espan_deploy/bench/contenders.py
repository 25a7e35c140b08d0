"""What takes part: models from files, opened in engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espan_deploy import backends
from espan_deploy.backends.base import Images, Runner
from espan_deploy.backends.model import INT8, ModelFile, read_model
from espan_deploy.errors import BackendUnavailableError, InputError
from espan_deploy.machine import usable_cores

if TYPE_CHECKING:
    from espan_deploy.networks import Network

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")


FOLDED, AS_TRAINED = "folded", "as trained"
"""What of a model runs."""


@dataclass(frozen=True)
class Model:
    """A model that takes part. name: unique in the run. network: the checkpoint's, where one was given."""

    name: str
    file: ModelFile
    network: Network | None = None


@dataclass(frozen=True)
class EngineChoice:
    """An engine and what it computes in. named: by the user, so that a model that is not there in it is a mistake."""

    backend: backends.Backend
    precision: str
    named: bool = False


@dataclass
class Contender:
    """A model in an engine. form: FOLDED or AS_TRAINED."""

    name: str
    model: Model
    engine: str
    precision: str
    runner: Runner
    form: str = FOLDED

    @property
    def file(self) -> ModelFile:
        """What runs: the model's file, or its INT8 form."""
        return self.model.file.in_precision(INT8) if self.precision == INT8 else self.model.file

    def __call__(self, images: Images) -> Mapping[str, float] | None:
        """Upscale, and tell the stages' milliseconds where the engine measured them."""
        self.runner.infer(images)
        stages: Mapping[str, float] | None = getattr(self.runner, "last_stages_ms", None)
        return stages

    def facts(self) -> dict[str, Any]:
        """Plain data for the report."""
        return {
            "name": self.name,
            "model": self.model.name,
            "engine": self.engine,
            "precision": self.precision,
            "form": self.form,
            "info": asdict(self.runner.info),
        }


def load_models(paths: Sequence[Path], checkpoints: Sequence[Path] = ()) -> list[Model]:
    """ONNX models and checkpoints; a checkpoint is exported in memory. checkpoints: of ONNX models among them.

    Raises what reading and exporting raise; InputError where a file is named twice or a checkpoint is nobody's.
    """
    doubled = sorted({str(path) for path in paths if list(paths).count(path) > 1})
    if doubled:
        raise InputError(f"named twice: {', '.join(doubled)}")
    loaded: list[tuple[ModelFile, Network | None]] = []
    for path in paths:
        if path.suffix.lower() in CHECKPOINT_SUFFIXES:
            loaded.append(_from_checkpoint(path))
        else:
            loaded.append((read_model(path), None))
    for path in checkpoints:
        _attach(path, loaded)
    titles = [file.description.title for file, _ in loaded]
    models = []
    for file, network in loaded:
        title = file.description.title
        name = title if title and titles.count(title) == 1 else file.path.stem
        models.append(Model(name, file, network))
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        models = [Model(str(model.file.path), model.file, model.network) for model in models]
    return models


def _from_checkpoint(path: Path) -> tuple[ModelFile, Network | None]:
    from espan_deploy.deploy import deploy_network
    from espan_deploy.sources import network_source

    network, source = network_source(path)
    made = deploy_network(network, source)
    return ModelFile(path, made.model.SerializeToString(), made.description), network


def _attach(path: Path, loaded: list[tuple[ModelFile, Network | None]]) -> None:
    from espan_deploy.sources import network_source

    network, source = network_source(path)
    for index, (file, _) in enumerate(loaded):
        if file.description.source_sha256 == source.sha256:
            loaded[index] = (file, network)
            return
    raise InputError(f"none of the models was exported from {path}", hint="name the checkpoint itself with --model")


def engine_choices(names: Sequence[str]) -> list[EngineChoice]:
    """Engines from their names: "openvino", "openvino:bf16", "auto" (the default of this machine, in FP32, in its
    preferred precision, and in INT8), or "all" (every engine and precision that can run here). INT8 that nobody named
    is of those models that are there in it.

    Raises BackendUnavailableError for what is unknown or cannot run here.
    """
    found: list[EngineChoice] = []
    for name in names or ("auto",):
        engine, _, precision = name.partition(":")
        if engine == "all":
            usable = [backend for backend in backends.BACKENDS if backend.unavailable_reason() is None]
            if not usable:
                backends.choose("auto")
            found += [choice for backend in usable for choice in _unsaid(backend)]
            continue
        backend = backends.choose(engine).backend
        if precision and precision not in backend.module.PRECISIONS:
            raise BackendUnavailableError(
                f"{backend.title} has no precision {precision}", hint=f"it has {', '.join(backend.module.PRECISIONS)}"
            )
        if engine == "auto" and not precision:
            found += _unsaid(backend)
        else:
            found.append(EngineChoice(backend, precision or "fp32", named=True))
    once = {(choice.backend.name, choice.precision): choice for choice in sorted(found, key=lambda c: c.named)}
    return [once[key] for key in dict.fromkeys((choice.backend.name, choice.precision) for choice in found)]


def _unsaid(backend: backends.Backend) -> list[EngineChoice]:
    precisions = [*backend.usable_precisions(), *(p for p in backend.module.PRECISIONS if p == INT8)]
    return [EngineChoice(backend, precision) for precision in precisions]


def open_contenders(
    models: Sequence[Model], engines: Sequence[EngineChoice], *, threads: int | None, against_torch: bool
) -> list[Contender]:
    """Every model in every engine, an engine file in its own; ``against_torch``: also as trained and folded in PyTorch.

    A model without a checkpoint is left out of PyTorch; InputError where none has one. Raises what opening raises.
    """
    if against_torch and all(model.network is None for model in models):
        raise InputError(
            f"--against torch needs the checkpoint of {models[0].file.path.name}",
            hint="name it with --checkpoint, or give the checkpoint itself as --model",
        )
    found = []
    for model in models:
        for choice in _choices_for(model.file, engines):
            runner = choice.backend.open(model.file, precision=choice.precision, threads=threads)
            name = f"{model.name} · {choice.backend.name} {choice.precision}"
            found.append(Contender(name, model, choice.backend.name, choice.precision, runner))
        if against_torch and model.network is not None:
            found += _torch_contenders(model, model.network, threads or usable_cores())
    return found


def _choices_for(file: ModelFile, engines: Sequence[EngineChoice]) -> Sequence[EngineChoice]:
    """An engine file runs in its own backend and precision, whatever the others run in; INT8 alone in INT8."""
    if file.only_int8 and not file.backend:
        able = [choice.backend for choice in engines if INT8 in choice.backend.module.PRECISIONS]
        return [EngineChoice(backend, INT8) for backend in dict.fromkeys(able)]
    if not file.backend:
        return [choice for choice in engines if choice.named or file.has(choice.precision)]
    return [EngineChoice(backends.choose("auto", file).backend, file.description.precision)]


def _torch_contenders(model: Model, network: Network, threads: int) -> list[Contender]:
    from espan_deploy.bench.torch_runner import graph_module, torch_runner

    trained = torch_runner(network.module, model.file.description, threads)
    folded = torch_runner(graph_module(model.file), model.file.description, threads)
    return [
        Contender(f"{model.name} · torch as trained", model, "torch", "fp32", trained, AS_TRAINED),
        Contender(f"{model.name} · torch folded", model, "torch", "fp32", folded, FOLDED),
    ]
