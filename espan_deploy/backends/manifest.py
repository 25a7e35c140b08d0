"""What an engine is: the JSON document beside it, and the checks that stand before it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from espan_deploy.description import ModelDescription, description_from_document
from espan_deploy.errors import EngineMismatchError, InputError

SCHEMA_VERSION = 1
ENGINE_SUFFIX = ".engine"
REBUILD = "build it again: espan-deploy export MODEL --recipe RECIPE"


@dataclass(frozen=True)
class Manifest:
    """Everything about one engine but its bytes.

    key: the cache key; parts: what it was made of, name -> value, so that a rebuild can say what changed.
    engine_sha256, engine_bytes: of the file itself. onnx_sha256: of the model given; graph_sha256: of the graph built,
    with its pixels and precision. device: the GPU it was built on, "" where it was built without one.
    tensors, layers: of the network. gate: the precision report, empty for FP32.
    """

    name: str
    recipe: str
    backend: str
    backend_version: str
    tool_version: str
    key: str
    parts: Mapping[str, Any]
    settings: Mapping[str, Any]
    description: Mapping[str, Any]
    onnx_sha256: str
    graph_sha256: str
    engine_sha256: str
    engine_bytes: int
    compute_capability: tuple[str, ...] = ()
    device: str = ""
    tensors: tuple[Mapping[str, Any], ...] = ()
    layers: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    gate: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    build_seconds: float = 0.0
    peak_host_mib: float | None = None
    allocator_mib: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """The document that ``read_manifest`` reads."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    def model_description(self) -> ModelDescription:
        """The model inside. Raises EngineMismatchError where the manifest's words for it are damaged."""
        try:
            return description_from_document(self.description)
        except TypeError as exc:
            raise EngineMismatchError(f"the manifest of {self.name} is damaged: {exc}", hint=REBUILD) from exc


def manifest_path(engine: Path) -> Path:
    """Where an engine's manifest lies: beside it, with ".json" added to its name."""
    return engine.with_name(f"{engine.name}.json")


def read_manifest(engine: Path) -> Manifest:
    """The manifest beside an engine. Raises EngineMismatchError where there is none, or it cannot be trusted."""
    path = manifest_path(engine)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document.pop("schema_version")
        known = {item.name for item in fields(Manifest)}
        values = {key: value for key, value in document.items() if key in known}
        for key in ("tensors", "layers", "warnings", "compute_capability"):
            values[key] = tuple(values.get(key, ()))
        manifest = Manifest(**values)
    except FileNotFoundError:
        raise EngineMismatchError(
            f"{engine} has no manifest ({path.name}) beside it, so there is no telling what it is",
            hint=f"copy the manifest along with the engine, or {REBUILD}",
        ) from None
    except OSError as exc:
        raise EngineMismatchError(f"the manifest {path} cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise EngineMismatchError(f"the manifest {path} is damaged: {exc}", hint=REBUILD) from exc
    if version != SCHEMA_VERSION:
        raise EngineMismatchError(
            f"the manifest {path} is of schema {version}, this version reads {SCHEMA_VERSION}", hint=REBUILD
        )
    return manifest


def read_engine(engine: Path) -> tuple[bytes, Manifest]:
    """An engine's bytes, after they were held against the manifest.

    Raises InputError where there is no such file, EngineMismatchError where it is truncated, was changed, or has no
    sound manifest. Whether this machine can run it, ``check_runtime`` says.
    """
    try:
        data = engine.read_bytes()
    except OSError as exc:
        raise InputError(f"cannot read the engine {engine}: {exc.strerror or exc}") from exc
    manifest = read_manifest(engine)
    check_bytes(data, manifest, str(engine))
    return data, manifest


def check_bytes(data: bytes, manifest: Manifest, name: str) -> None:
    """Raise EngineMismatchError where bytes are not those the manifest describes."""
    if len(data) != manifest.engine_bytes:
        what = "truncated" if len(data) < manifest.engine_bytes else "another file"
        raise EngineMismatchError(
            f"{name} is {what}: {len(data)} bytes, its manifest says {manifest.engine_bytes}", hint=REBUILD
        )
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.engine_sha256:
        raise EngineMismatchError(
            f"{name} is not the engine its manifest describes: its SHA-256 is {found[:16]}..., "
            f"expected {manifest.engine_sha256[:16]}...",
            hint=REBUILD,
        )


def check_runtime(
    manifest: Manifest, *, backend: str, backend_version: str, compute_capability: str | None = None, gpu: str = ""
) -> None:
    """Raise EngineMismatchError where a runtime or device is not the one the engine was built for.

    compute_capability, gpu: of the device at hand, None where it is not known yet.
    """
    if manifest.backend != backend:
        raise EngineMismatchError(
            f"{manifest.name} is an engine of {manifest.backend}, not of {backend}",
            hint=f"run it with --engine {manifest.backend}",
        )
    target = manifest.settings.get("target", {})
    if manifest.backend_version != backend_version and not _newer_allowed(manifest, target, backend_version):
        raise EngineMismatchError(
            f"{manifest.name} was built by {backend} {manifest.backend_version}, this is {backend_version}",
            hint=REBUILD,
        )
    if compute_capability is None or target.get("hardware_compatibility") == "ampere-plus":
        minimum = 8 if target.get("hardware_compatibility") == "ampere-plus" else 0
        if compute_capability is not None and int(compute_capability.split(".")[0]) < minimum:
            raise EngineMismatchError(f"{manifest.name} runs from Ampere on (8.0); {gpu} is {compute_capability}")
        return
    if compute_capability not in manifest.compute_capability:
        wanted = ", ".join(manifest.compute_capability) or "an unknown GPU"
        raise EngineMismatchError(
            f"{manifest.name} was built for compute capability {wanted}; {gpu or 'this GPU'} is {compute_capability}",
            hint="build it with a recipe for this GPU, such as this-gpu-fp16 or this-gpu-rtx-fp16",
        )


def _newer_allowed(manifest: Manifest, target: Mapping[str, Any], version: str) -> bool:
    def parse(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".") if part.isdigit())

    return bool(target.get("version_compatible")) and parse(version) >= parse(manifest.backend_version)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between the parts of two keys: "profile.height.max: 512 -> 1024"."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before != after:
            hashes = key.endswith("sha256")
            found.append(f"{key}: changed" if hashes else f"{key}: {before} -> {after}")
    return tuple(found)


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one: {"profile": {"batch": {"min": 1}}} -> {"profile.batch.min": 1}. Sequences become lists."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 over the parts, in a canonical form."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
