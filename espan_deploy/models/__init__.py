"""The models that come with the package."""

from __future__ import annotations

from pathlib import Path

from espan_deploy.errors import InputError

DEFAULT_NAME = "espan_x4.onnx"


def default_model() -> Path:
    """The ONNX file used where none is named. Raises InputError where this installation has none."""
    path = Path(__file__).with_name(DEFAULT_NAME)
    if not path.is_file():
        raise InputError(
            "no model was named, and this installation comes with none",
            hint="name one with --model; `espan-deploy export CHECKPOINT -o espan.onnx` makes it",
        )
    return path
