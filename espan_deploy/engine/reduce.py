"""The graph that a recipe asks for: an FP32 model in the recipe's pixels and precision, held to its gate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from espan_deploy.backends.manifest import ENGINE_SUFFIX, flatten
from espan_deploy.backends.model import INT8, ModelFile
from espan_deploy.description import ModelDescription
from espan_deploy.errors import BackendUnavailableError, ExportError, VerificationError
from espan_deploy.pixels import with_pixels
from espan_deploy.precision.breakdown import sound_images
from espan_deploy.precision.codes import CODES_BUDGET, budget_of, codes_within_budget
from espan_deploy.precision.gate import graph_upscaler
from espan_deploy.precision.half import to_half
from espan_deploy.precision.images import MAX_SIDE, VerifyImage, fitted, generated_images, load_images
from espan_deploy.precision.keep import KeepFp32, half_within_budget
from espan_deploy.quantize.calibrate import int8_within_budget
from espan_deploy.quantize.pictures import CalibrationPictures, generated_pictures, load_pictures
from espan_deploy.quantize.recipe import CalibrationRecipe, load_calibration_recipe
from espan_deploy.recipes import ENGINE_BACKENDS, Budget, Recipe

Say = Callable[[str], None]


@dataclass(frozen=True)
class Calibration:
    """How INT8 is made, beside what recipes say.

    folder: of photographs; None generates pictures. budget_db: against the truth; None takes the recipe's.
    float_sha256: of the file of the FP32 model; "" takes the model given for it.
    """

    folder: Path | None = None
    budget_db: float | None = None
    float_sha256: str = ""


@dataclass(frozen=True)
class Source:
    """The model given. name: its file's."""

    name: str
    sha256: str
    model: onnx.ModelProto
    description: ModelDescription


def source_of(file: ModelFile) -> Source:
    """Raises ExportError for what is neither FP32 nor INT8 with float pixels, or damaged."""
    description = file.description
    usable = description.precision in ("fp32", INT8) and description.pixels != "uint8"
    if file.path.suffix == ENGINE_SUFFIX or not usable:
        raise ExportError(
            f"{file.path} is {description.precision} with {description.pixels} pixels already; engines are made of the "
            "FP32 model with float pixels",
            hint="export it without --precision and --pixels",
        )
    try:
        model = onnx.load_from_string(file.data)
        onnx.checker.check_model(model)
    except Exception as exc:  # protobuf's and the checker's errors share no base
        raise ExportError(f"{file.path} is a damaged ONNX file: {exc}") from exc
    return Source(file.path.stem, file.sha256, model, description)


@dataclass(frozen=True)
class Reduction:
    """All that the graph is made of beside the model and its engine recipe.

    keep: layers that stay in float. images: the gate's, in sizes that the model takes. pictures, calibration: for INT8.
    budget: of a model that is INT8 already.
    """

    keep: KeepFp32
    images: tuple[VerifyImage, ...]
    pictures: CalibrationPictures | None = None
    calibration: CalibrationRecipe | None = None
    float_sha256: str = ""
    budget: Budget = CODES_BUDGET

    @classmethod
    def of(
        cls,
        source: Source,
        recipe: Recipe,
        *,
        keep: KeepFp32 | None,
        verify: Path | None,
        calibration: Calibration | None,
    ) -> Reduction:
        """Raises InputError, CalibrationError and RecipeError for what cannot be read."""
        scale = source.description.scale
        images = load_images(verify, scale) if verify else generated_images(scale)
        wanted: KeepFp32 = recipe.keep_fp32 if keep is None else keep
        in_codes = source.description.precision == INT8
        if in_codes and recipe.precision != INT8:
            raise ExportError(
                f"{source.name} is INT8 already, and the recipe asks for {recipe.precision}",
                hint="give the FP32 file, or take a recipe in INT8",
            )
        if recipe.precision != INT8 or in_codes:
            budget = budget_of(None if calibration is None else calibration.budget_db)
            return cls(wanted, tuple(_fitted(source, images)), budget=budget)
        how = load_calibration_recipe(recipe.calibration)
        asked = calibration or Calibration()
        if asked.budget_db is not None:
            how = replace(how, budget=replace(how.budget, max_truth_drop_db=asked.budget_db))
        pictures = generated_pictures(scale) if asked.folder is None else load_pictures(asked.folder, scale)
        if not verify and pictures.held_out:
            # Photographs tell what is lost against the truth; generated pictures how far from FP32 the worst case is.
            images = [*(replace(image, high=None) for image in images), *pictures.held_out]
        float_sha256 = asked.float_sha256 or source.sha256
        return cls(wanted, tuple(_fitted(source, images)), pictures, how, float_sha256)

    def parts(self, recipe: Recipe) -> dict[str, Any]:
        """What of it goes into an engine's key."""
        parts: dict[str, Any] = {"keep_fp32": self.keep if isinstance(self.keep, str) else list(self.keep)}
        if recipe.precision != "fp32":
            parts["verify_images_sha256"] = _digest(self.images)
        if self.pictures is not None and self.calibration is not None:
            digest = hashlib.sha256()
            for picture in self.pictures.pictures:
                digest.update(hashlib.sha256(picture.tobytes()).digest())
            parts["calibration_pictures_sha256"] = digest.hexdigest()
            parts |= flatten({"calibration": asdict(self.calibration)})
        return parts

    def judging(self, recipe: Recipe) -> Recipe:
        """The recipe with the budget that its engine is held to: INT8's stands elsewhere."""
        if recipe.precision != INT8:
            return recipe
        return replace(recipe, budget=self.budget if self.calibration is None else self.calibration.budget)

    def graph(self, source: Source, recipe: Recipe, say: Say) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The graph to build, and the gate's report, empty for FP32. Raises VerificationError where it refuses."""
        if recipe.precision == "int8":
            return self._int8(source, recipe, say)
        model = with_pixels(source.model, source.description, recipe.pixels, guard=recipe.pixels == "uint8")
        if recipe.precision != "fp16":
            return model, {}
        # Where the engine gives bytes, its own FP32 no longer shows how far out it was.
        sound, _, notes = sound_images(graph_upscaler(source.model, source.description), self.images)
        passed = half_within_budget(
            model,
            described(source, recipe),
            sound,
            budget=recipe.budget,
            keep_fp32=self.keep,
            progress=say,
        )
        return passed.half.model, {**passed.to_dict(), "notes": notes}

    def _int8(self, source: Source, recipe: Recipe, say: Say) -> tuple[onnx.ModelProto, dict[str, Any]]:
        if source.description.precision == INT8:
            say("comparing with what it computes in floats")
            comparison, notes = codes_within_budget(source.model, source.description, self.images, self.budget)
            model = self._typed(source.model, source.description, recipe)
            return model, {"comparison": comparison.to_dict(), "notes": notes}
        assert self.pictures is not None
        assert self.calibration is not None
        if find_spec("torch") is None:
            raise BackendUnavailableError(
                "finding INT8's rounding needs PyTorch, which is not installed",
                hint="pip install 'espan-deploy[export]'",
            )
        passed = int8_within_budget(
            source.model,
            source.description,
            self.pictures,
            self.images,
            self.calibration,
            keep=None if self.keep in ("auto", ()) else tuple(self.keep),
            float_sha256=self.float_sha256,
            progress=say,
        )
        return self._typed(passed.model, passed.description, recipe), passed.to_dict()

    def _typed(self, model: onnx.ModelProto, description: ModelDescription, recipe: Recipe) -> onnx.ModelProto:
        """A graph in INT8 in the recipe's pixels; for a GPU with FP16 beside the codes, which must stay finite."""
        model = with_pixels(model, description, recipe.pixels, guard=recipe.pixels == "uint8")
        if recipe.backend not in ENGINE_BACKENDS:
            return model
        half = to_half(model).model
        upscale = graph_upscaler(half, _with_pixels_of(description, recipe))
        if not all(np.isfinite(upscale(image.low)).all() for image in self.images):
            raise VerificationError(
                f"{description.title} in INT8 makes values that FP16 beside it does not hold",
                hint="take a recipe in FP16, and keep layers in FP32 with --keep auto",
            )
        return half


def described(source: Source, recipe: Recipe) -> ModelDescription:
    """The model with the recipe's pixels."""
    return _with_pixels_of(source.description, recipe)


def _with_pixels_of(description: ModelDescription, recipe: Recipe) -> ModelDescription:
    order = "RGB" if recipe.pixels == "uint8" else description.color_order
    return replace(description, pixels=recipe.pixels, color_order=order)


def _fitted(source: Source, images: Sequence[VerifyImage]) -> list[VerifyImage]:
    dims = source.model.graph.input[0].type.tensor_type.shape.dim
    height, width = (
        (dim.dim_value, dim.dim_value) if dim.HasField("dim_value") else (1, MAX_SIDE) for dim in (dims[2], dims[3])
    )
    scale, multiple = source.description.scale, source.description.size_multiple
    return fitted(images, scale, height=height, width=width, multiple=multiple)


def _digest(images: Sequence[VerifyImage]) -> str:
    digest = hashlib.sha256()
    for image in images:
        for part in (image.name.encode(), image.low.tobytes(), b"" if image.high is None else image.high.tobytes()):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
