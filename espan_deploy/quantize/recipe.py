"""Calibration recipes: how a network is quantised for a family of targets, as versioned TOML files, read strictly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from espan_deploy.errors import RecipeError
from espan_deploy.quantize.arithmetic import Signs
from espan_deploy.recipes import Budget, read_recipe, settings_from_toml

DEFAULT = "x86"


@dataclass(frozen=True)
class Learning:
    """The training at the end. steps: of it; each sees ``crops`` pictures of ``side`` x ``side`` pixels."""

    steps: int = 60
    crops: int = 6
    side: int = 48


@dataclass(frozen=True)
class CalibrationRecipe:
    """name: its file's, without ".toml". activations: the signs of their codes.

    timed_in: the backend in which a layer's cost in float is measured and the result is judged; "" where none is at
    hand on a CPU: multiply-adds then stand for time, and ONNX Runtime judges. keep: layers that stay in float.
    read_twice: whether a layer may read its input twice, half a step apart, where that costs less than float.
    """

    name: str
    title: str
    activations: Signs = "unsigned"
    timed_in: Literal["openvino", "onnxruntime", ""] = ""
    keep: tuple[str, ...] = ()
    read_twice: bool = False
    learning: Learning = field(default_factory=Learning)
    budget: Budget = field(default_factory=Budget)


def calibration_folder() -> Path:
    """Where the recipes lie: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "calibration_recipes"
    return installed if installed.is_dir() else package.parent / "calibration"


def load_calibration_recipe(name: str) -> CalibrationRecipe:
    """A recipe that comes with the package, by name, or one's own, by the path of its ".toml" file.

    Raises RecipeError where there is none, or where it does not hold together.
    """
    stem, text = read_recipe(name, calibration_folder(), "calibration recipe")
    recipe = settings_from_toml(CalibrationRecipe, text, stem)
    if min(recipe.learning.steps, recipe.learning.crops - 1, recipe.learning.side - 16) < 0:
        raise RecipeError(f"recipe {stem!r}: learning wants steps >= 0, crops >= 1 and side >= 16")
    return recipe
