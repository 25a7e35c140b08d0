"""Engine recipes: what to build for which device, as versioned TOML files, read strictly."""

from __future__ import annotations

import difflib
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from espan_deploy.description import Pixels
from espan_deploy.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA_VERSION = 1

T = TypeVar("T")

Backend = Literal["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")

CAPABILITY = re.compile(r"\d{1,2}\.\d")


@dataclass(frozen=True)
class Span:
    """What a dimension of the input may be: from min to max, fastest at opt."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Profile:
    """Sizes of the low-resolution input that an engine takes."""

    batch: Span = Span(1, 1, 8)
    height: Span = Span(1, 256, 512)
    width: Span = Span(1, 256, 512)


@dataclass(frozen=True)
class Target:
    """The device an engine is for.

    compute_capability: NVIDIA's, as "8.6"; empty for the GPU at hand. TensorRT itself builds for the GPU at hand
        only, and holds it to this list; TensorRT-RTX builds for every one named, on any machine.
    hardware_compatibility: TensorRT's: "ampere-plus" engines run on every card from Ampere on, somewhat slower.
    version_compatible: TensorRT's: runs on later versions, too, somewhat slower.
    """

    gpu: str = ""
    compute_capability: tuple[str, ...] = ()
    hardware_compatibility: Literal["none", "same-compute-capability", "ampere-plus"] = "none"
    version_compatible: bool = False


@dataclass(frozen=True)
class BuildSettings:
    """How the builder works.

    optimization_level: 0 to 5; more searches longer for faster kernels. TensorRT-RTX knows one level only.
    workspace_mib: scratch memory that kernels may use; None leaves it to the builder.
    weights: "refit" can be given new weights later, "stripped" holds none and needs a refit before it runs.
    timing_cache: keep TensorRT's measurements between builds (TensorRT-RTX measures nothing while building).
    """

    optimization_level: int | None = None
    workspace_mib: int | None = None
    weights: Literal["embedded", "refit", "stripped"] = "embedded"
    timing_cache: bool = True


@dataclass(frozen=True)
class RunSettings:
    """How the engine runs; not part of the engine.

    cuda_graph: replay the launches of a shape that keeps coming as one. specialization: when TensorRT-RTX compiles
        kernels for the very shape at hand. threads: of the CPU backends, None for their own choice.
    """

    cuda_graph: bool = False
    specialization: Literal["lazy", "eager", "none"] = "lazy"
    threads: int | None = None


@dataclass(frozen=True)
class Budget:
    """How far from FP32 a model may be.

    min_psnr_db: between the 8-bit outputs of both. max_truth_drop_db: how much PSNR against the truth may be lost,
    averaged over the images that have one. max_share_off_by_more: of values more than one level apart.
    """

    min_psnr_db: float = 55.0
    max_truth_drop_db: float = 0.01
    max_share_off_by_more: float = 0.005
    max_nonfinite: int = 0


@dataclass(frozen=True)
class Recipe:
    """One engine. name: its file's, without ".toml". calibration: for INT8, the calibration recipe."""

    name: str
    title: str
    backend: Backend
    precision: Precision
    pixels: Pixels = "uint8"
    keep_fp32: tuple[str, ...] = ()
    calibration: str = "x86"
    target: Target = field(default_factory=Target)
    profile: Profile = field(default_factory=Profile)
    build: BuildSettings = field(default_factory=BuildSettings)
    run: RunSettings = field(default_factory=RunSettings)
    budget: Budget = field(default_factory=Budget)

    def settings(self) -> dict[str, Any]:
        """Everything that goes into the engine, for its manifest and its cache key: all but names and ``run``."""
        document = asdict(self)
        for key in ("name", "title", "run"):
            del document[key]
        return document


def recipe_folder() -> Path:
    """Where the recipes lie: inside an installed package, or beside the package in a checkout."""
    installed = Path(__file__).parent / "engine_recipes"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "engines"


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in recipe_folder().glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """A recipe that comes with the package, by name, or one's own, by the path of its ".toml" file.

    Raises RecipeError where there is none, with the nearest name; where a key is unknown, with the nearest key; where
    a value is of the wrong kind, or values contradict each other.
    """
    stem, text = read_recipe(name, recipe_folder(), "recipe")
    return parse_recipe(text, stem)


def read_recipe(name: str, folder: Path, kind: str) -> tuple[str, str]:
    """The stem and the text of a recipe in the folder, by name, or of one's own, by the path of its ".toml" file.

    kind: what messages call it. Raises RecipeError where there is none, with the nearest name, or it cannot be read.
    """
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    try:
        return path.stem, path.read_bytes().decode()
    except FileNotFoundError:
        names = sorted(each.stem for each in folder.glob("*.toml"))
        near = difflib.get_close_matches(name, names, 1, 0.0)
        raise RecipeError(
            f"there is no {kind} {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"{kind}s: {', '.join(names)}; or give the path of a .toml file of your own",
        ) from None
    except (OSError, UnicodeDecodeError) as exc:
        raise RecipeError(f"the {kind} {path} cannot be read: {exc}") from exc


def parse_recipe(text: str, name: str) -> Recipe:
    """A recipe from TOML text; raises RecipeError as ``load_recipe`` does."""
    recipe = settings_from_toml(Recipe, text, name)
    _check(recipe)
    return recipe


def settings_from_toml(kind: type[T], text: str, name: str) -> T:
    """A dataclass of settings from TOML text, every key known and every value of its declared type.

    kind: has a field ``name``, which is the file's and not in it. Raises RecipeError with the nearest key or value.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise RecipeError(f"the recipe {name!r} is no TOML: {exc}") from exc
    version = document.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise RecipeError(f"the recipe {name!r} is of schema {version}, this version reads {SCHEMA_VERSION}")
    if "name" in document:
        raise RecipeError(f"the recipe {name!r} names itself; its name is its file's")
    settings: T = _build(kind, {"name": name, **document}, f"recipe {name!r}", "")
    return settings


def _build(kind: Any, document: Any, where: str, path: str) -> Any:
    """A dataclass from a table, every key known and every value of its declared type."""
    if not isinstance(document, Mapping):
        raise RecipeError(f"{where}: {path} is {document!r}, expected a table of {', '.join(_names(kind))}")
    hints = get_type_hints(kind)
    for key in document:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.0)[0]
            raise RecipeError(
                f"{where}: unknown key {_join(path, key)!r}; did you mean {_join(path, near)!r}?",
                hint=f"keys there: {', '.join(n for n in _names(kind) if n != 'name')}",
            )
    for item in fields(kind):
        if item.name not in document and item.default is MISSING and item.default_factory is MISSING:
            raise RecipeError(f"{where}: {_join(path, item.name)!r} is missing")
    return kind(**{key: _convert(hints[key], value, where, _join(path, key)) for key, value in document.items()})


def _convert(hint: Any, value: Any, where: str, path: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, where, path)
    if get_origin(hint) is Literal:
        if value in get_args(hint) and isinstance(value, str):
            return value
        near = difflib.get_close_matches(str(value), get_args(hint), 1, 0.0)[0]
        raise RecipeError(
            f"{where}: {path} is {value!r}, expected one of {', '.join(get_args(hint))}; did you mean {near!r}?"
        )
    if get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise RecipeError(f"{where}: {path} is {value!r}, expected a list of strings")
    wanted = next(a for a in get_args(hint) if a is not type(None)) if get_origin(hint) in _UNIONS else hint
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is wanted:
        return value
    raise RecipeError(f"{where}: {path} is {value!r}, expected {_KINDS[wanted]}")


_UNIONS = (Union, types.UnionType)
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def _names(kind: Any) -> list[str]:
    return [item.name for item in fields(kind)]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def for_sizes(recipe: Recipe, *, least: int, multiple: int) -> Recipe:
    """The recipe with a profile of sizes that a model takes: multiples, the smallest of at least ``least``.

    Raises RecipeError where the profile has none.
    """
    spans = {}
    for name in ("height", "width"):
        span: Span = getattr(recipe.profile, name)
        low, best = (-(-max(size, least) // multiple) * multiple for size in (span.min, span.opt))
        high = span.max // multiple * multiple
        if low > high:
            raise RecipeError(
                f"recipe {recipe.name!r}: profile.{name} is {span.min} to {span.max}, and the model takes multiples of "
                f"{multiple} from {least} on"
            )
        spans[name] = Span(low, min(best, high), high)
    return replace(recipe, profile=replace(recipe.profile, **spans))


def _check(recipe: Recipe) -> None:
    """Refuse what contradicts itself."""
    where = f"recipe {recipe.name!r}"
    for name in ("batch", "height", "width"):
        span: Span = getattr(recipe.profile, name)
        if not 1 <= span.min <= span.opt <= span.max:
            raise RecipeError(
                f"{where}: profile.{name} is min {span.min}, opt {span.opt}, max {span.max}, "
                "expected 1 <= min <= opt <= max"
            )
    for capability in recipe.target.compute_capability:
        if not CAPABILITY.fullmatch(capability):
            raise RecipeError(f"{where}: target.compute_capability holds {capability!r}, expected the like of '8.6'")
    level = recipe.build.optimization_level
    if level is not None and not 0 <= level <= 5:
        raise RecipeError(f"{where}: build.optimization_level is {level}, expected 0 to 5")
    if recipe.build.workspace_mib is not None and recipe.build.workspace_mib < 1:
        raise RecipeError(f"{where}: build.workspace_mib is {recipe.build.workspace_mib}, expected at least 1")
    allowed = PRECISIONS[recipe.backend]
    if recipe.precision not in allowed:
        raise RecipeError(
            f"{where}: {recipe.backend} is not built in {recipe.precision}", hint=f"it takes {', '.join(allowed)}"
        )
    if recipe.precision == "int8" and recipe.budget != Budget():
        raise RecipeError(f"{where}: INT8's budget stands in the calibration recipe {recipe.calibration!r}")
    if recipe.keep_fp32 and recipe.precision not in ("fp16", "int8"):
        raise RecipeError(f"{where}: keep_fp32 has no meaning in {recipe.precision}")
    if recipe.backend == "tensorrt-rtx":
        _refuse_rtx(recipe, where)


PRECISIONS: dict[str, tuple[str, ...]] = {
    "tensorrt": ("fp32", "fp16", "int8"),
    "tensorrt-rtx": ("fp32", "fp16"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
}
"""Backend -> what it is built in here. BF16 is OpenVINO's own way of running an FP32 graph."""


def _refuse_rtx(recipe: Recipe, where: str) -> None:
    """TensorRT-RTX ignores these or fails on them deep inside; say so first."""
    if recipe.target.hardware_compatibility != "none":
        raise RecipeError(
            f"{where}: TensorRT-RTX has no target.hardware_compatibility",
            hint="name every compute capability it is to run on instead",
        )
    if recipe.target.version_compatible:
        raise RecipeError(f"{where}: TensorRT-RTX has no target.version_compatible engines")
    if recipe.build.optimization_level is not None:
        raise RecipeError(f"{where}: TensorRT-RTX has no build.optimization_level")
