"""A model file as backends take it: its bytes, their hash, and what it says of itself, read without onnx."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from espan_deploy.backends.manifest import ENGINE_SUFFIX, read_engine
from espan_deploy.description import ModelDescription, description_from_metadata
from espan_deploy.errors import BackendUnavailableError, ExportError, InputError

METADATA_FIELD = 14
"""ModelProto.metadata_props; its entries hold the key as field 1 and the value as field 2."""

INT8 = "int8"
"""The precision of a graph that quantises its values itself, and of nothing else."""

INT8_SUFFIX = "_int8.onnx"
"""In place of an FP32 file's ".onnx": where its INT8 form is looked for."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Protocol buffers' wire types."""


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file or an engine, read once: later changes on disk do not matter.

    path: where it came from, for messages. data: the file's bytes. backend: the one an engine was built for, "" for
    an ONNX file, which every backend takes. int8: the INT8 form that lies beside an FP32 file and was made of it.
    """

    path: Path
    data: bytes
    description: ModelDescription
    backend: str = ""
    int8: ModelFile | None = None

    @cached_property
    def sha256(self) -> str:
        """Of the bytes."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def sha256s(self) -> list[str]:
        """Of all that may run in its name."""
        return [self.sha256] + ([] if self.int8 is None else [self.int8.sha256])

    @property
    def only_int8(self) -> bool:
        """Whether there is nothing here to run in another precision."""
        return self.description.precision == INT8

    def has(self, precision: str) -> bool:
        """Whether there is a file here that computes in this precision, or that a backend may run in it."""
        return (self.only_int8 or self.int8 is not None) if precision == INT8 else not self.only_int8

    def in_precision(self, precision: str) -> ModelFile:
        """The file to run in a precision. Raises BackendUnavailableError where there is none."""
        if not self.has(precision):
            if precision == INT8:
                raise BackendUnavailableError(
                    f"{self.path.name} has no INT8 form beside it",
                    hint=f"one that was made of it, named {self.path.stem}{INT8_SUFFIX}, is taken",
                )
            raise BackendUnavailableError(
                f"{self.path.name} computes in INT8 only, not in {precision}",
                hint="leave out --precision, or give the FP32 file",
            )
        return self.int8 if precision == INT8 and self.int8 is not None else self


def read_model(path: Path) -> ModelFile:
    """Read an ONNX file and its description, and its INT8 form where one lies beside it; or an engine and its manifest.

    Raises InputError where the file cannot be read, ExportError where it is no ONNX file or does not describe itself,
    EngineMismatchError where an engine is not what its manifest says.
    """
    if path.suffix == ENGINE_SUFFIX:
        engine, manifest = read_engine(path)
        return ModelFile(path, engine, manifest.model_description(), manifest.backend)
    model = _read_onnx(path)
    beside = path.with_name(path.stem + INT8_SUFFIX)
    if model.only_int8 or not beside.is_file():
        return model
    int8 = _read_onnx(beside)
    # One of another model, or of what this one was before it was exported again, is none of its forms.
    return replace(model, int8=int8) if int8.only_int8 and int8.description.float_sha256 == model.sha256 else model


def _read_onnx(path: Path) -> ModelFile:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(
            f"cannot read the model {path}: {exc.strerror or exc}", hint="name an ONNX file with --model"
        ) from exc
    description = model_description(data, path)
    if description is None:
        raise ExportError(
            f"{path} does not say what it is: it carries no description of ours",
            hint="`espan-deploy export FILE.onnx -o described.onnx` derives one",
        )
    return ModelFile(path, data, description)


def model_description(data: bytes, path: Path) -> ModelDescription | None:
    """The description in an ONNX file's bytes, or None where it carries none of ours; path is for messages.

    Raises ExportError where the bytes are no ONNX file.
    """
    try:
        metadata = dict(_metadata(memoryview(data)))
    except (IndexError, ValueError) as exc:
        raise ExportError(
            f"{path} is not an ONNX file", hint="`espan-deploy export CHECKPOINT -o espan.onnx` makes one"
        ) from exc
    return description_from_metadata(metadata)


def _metadata(data: memoryview) -> Iterator[tuple[str, str]]:
    if not len(data):
        raise ValueError("empty")
    for number, value in _fields(data):
        if number == METADATA_FIELD:
            entry = {key: bytes(text).decode() for key, text in _fields(value)}
            yield entry.get(1, ""), entry.get(2, "")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Every length-delimited field of a protocol buffers message; the others are skipped."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == VARINT:
            _, position = _varint(data, position)
        elif kind in (FIXED64, FIXED32):
            position += 8 if kind == FIXED64 else 4
        elif kind == BYTES:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError("truncated")
            yield tag >> 3, data[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
