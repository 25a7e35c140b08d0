"""The models that come with the package, and what they were measured at."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espan_deploy.errors import InputError

FIGURES = "figures.json"


@dataclass(frozen=True)
class PackagedModel:
    """A model of the package's own.

    name: what ``--model`` takes. made_for: the pictures it was trained for. photographs: what it was trained on.
    """

    name: str
    made_for: str
    photographs: str

    @property
    def path(self) -> Path:
        """The ONNX file. Raises InputError where this installation lacks it."""
        path = Path(__file__).with_name(f"{self.name}.onnx")
        if not path.is_file():
            raise InputError(
                f"this installation comes without the model {self.name!r}",
                hint="name a file with --model; `espan-deploy export CHECKPOINT -o espan.onnx` makes it",
            )
        return path

    def y_psnr_db(self) -> dict[str, dict[str, float]]:
        """Set -> JPEG quality of the input ("none": as it is) -> Y-PSNR in dB, mean of the set, x4, FP32."""
        return _y_psnr_db(self.name)


MODELS = {
    model.name: model
    for model in (
        PackagedModel(
            "clean",
            "lossless pictures: PNG, TIFF, BMP, lossless WebP",
            "BSDS500 (research and education) and freely licensed photographs",
        ),
        PackagedModel(
            "camera",
            "photographs of cameras and phones: JPEG of quality 75 to 95, lossy WebP, AVIF, HEIC",
            "the same, spoiled, going on from clean",
        ),
        PackagedModel(
            "photo",
            "photographs that were compressed much: JPEG below quality 75",
            "the same, spoiled, going on from clean",
        ),
    )
}
"""The first is for pictures of which nothing is known."""


def default_model() -> Path:
    """The ONNX file for pictures of which nothing is known. Raises InputError where this installation has none."""
    return next(iter(MODELS.values())).path


def model_file(name: str | os.PathLike[str]) -> Path:
    """The file of a model's name, or the file named. A file in the way of a name is meant by ``./clean``."""
    model = MODELS.get(os.fspath(name))
    return Path(name) if model is None else model.path


def _y_psnr_db(name: str) -> dict[str, dict[str, float]]:
    document = figures()
    columns = ["none" if quality is None else str(quality) for quality in document["jpeg_quality"]]
    return {
        group: dict(zip(columns, rows[name], strict=True))
        for group, rows in document["y_psnr_db"].items()
        if name in rows
    }


def figures() -> dict[str, Any]:
    """The table as ``python -m training table`` measured it: jpeg_quality, and y_psnr_db by set and enlarger."""
    document: dict[str, Any] = json.loads(Path(__file__).with_name(FIGURES).read_text())
    return document
