"""What ``export`` does beyond FP32 ONNX: precision, pixels, recipes, and the cache of engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import onnx

    from espan_deploy.backends.manifest import Manifest
    from espan_deploy.backends.trt_module import BuildProgress
    from espan_deploy.description import ModelDescription
    from espan_deploy.recipes import Recipe

MEGA = 1e6

F = TypeVar("F", bound=Callable[..., Any])

ENGINE_SUFFIX = ".engine"


@dataclass(frozen=True)
class EngineOptions:
    """The options as given; ``wanted`` where any of them asks for more than FP32 ONNX."""

    recipe: str | None
    precision: str | None
    pixels: str | None
    keep: str | None
    verify: Path | None
    rebuild: bool
    calibrate: Path | None
    budget_db: float | None
    calibration_report: Path | None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do here."""
        return self.recipe is not None or self.precision in ("fp16", "int8") or self.pixels not in (None, "float32")

    def loaded(self) -> Recipe:
        """The recipe, with what the options change in it. Raises RecipeError, and click's error for a contradiction."""
        from espan_deploy.recipes import Recipe, load_recipe

        if self.recipe is None:
            recipe = Recipe("custom", "An ONNX file", "onnxruntime", "fp32", "float32")
        else:
            recipe = load_recipe(self.recipe)
        changes: dict[str, Any] = {}
        if self.precision is not None:
            changes["precision"] = self.precision
        if self.pixels is not None:
            changes["pixels"] = self.pixels
        return replace(recipe, **changes)

    def kept(self) -> Any:
        """What to keep in float: "auto", names, or None for what the recipe says."""
        if self.keep is None or self.keep == "auto":
            return self.keep
        return tuple(name.strip() for name in self.keep.split(",") if name.strip())

    def check(self, recipe: Recipe) -> None:
        """Raise click's error for an option that would do nothing."""
        if recipe.precision == "int8":
            return
        for name, value in (
            ("--calibrate", self.calibrate),
            ("--budget-db", self.budget_db),
            ("--calibration-report", self.calibration_report),
        ):
            if value is not None:
                raise click.UsageError(f"{name} is for INT8: say --precision int8, or take a recipe in it")

    def suffix(self) -> str:
        """Of the file to be written."""
        from espan_deploy.recipes import ENGINE_BACKENDS

        return ENGINE_SUFFIX if self.loaded().backend in ENGINE_BACKENDS else ".onnx"


def engine_options(command: F) -> F:
    """Add the options to a command, which takes them as one ``engine: EngineOptions``."""
    names = (
        *("recipe", "precision", "pixels", "keep", "verify", "rebuild"),
        *("calibrate", "budget_db", "calibration_report"),
    )

    @wraps(command)
    def gathered(**options: Any) -> Any:
        engine = EngineOptions(**{name: options.pop(name) for name in names})
        return command(engine=engine, **options)

    result: Any = gathered
    for option in reversed(
        (
            click.option(
                "--recipe", metavar="NAME|FILE.toml", help="Build this engine; recipes are in docs/engines.md."
            ),
            click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Of the graph's own types."),
            click.option(
                "--pixels",
                type=click.Choice(["uint8", "float32", "float16"]),
                help="What goes in and comes out; uint8 is (N, H, W, 3), scaled and rounded in the graph.",
            ),
            click.option(
                "--keep",
                "--keep-fp32",
                "keep",
                metavar="LAYER,...|auto",
                help="Layers that stay in float; auto, which INT8 does by itself: as few as pass.",
            ),
            click.option(
                "--verify", type=click.Path(path_type=Path), metavar="DIR", help="Images to compare with FP32 on."
            ),
            click.option(
                "--calibrate",
                type=click.Path(path_type=Path),
                metavar="DIR",
                help="Photographs to find INT8's ranges and rounding on; without it, generated pictures.",
            ),
            click.option(
                "--budget-db",
                type=click.FloatRange(min=0),
                help="What INT8 may lose against the truth, in dB.  [default: the recipe's, 0.01; 0.03 of a graph "
                "that came in INT8]",
            ),
            click.option(
                "--calibration-report",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Write INT8's scales, and each layer's error, cost and decision, JSON.",
            ),
            click.option("--rebuild", is_flag=True, help="Build even what is in the cache."),
        )
    ):
        result = option(result)
    return result  # type: ignore[no-any-return]


def export_engine(
    model: onnx.ModelProto,
    described: ModelDescription,
    options: EngineOptions,
    target: Path,
    *,
    float_sha256: str = "",
) -> dict[str, Any]:
    """Build what the options ask for and write it. Returns what ``--json`` says of it.

    float_sha256: of the FP32 model's own file, where it is not the one that would be written of ``model``.
    """
    from espan_deploy.backends.model import ModelFile
    from espan_deploy.engine.build import engine_from_onnx, graph_from_onnx
    from espan_deploy.engine.reduce import Calibration
    from espan_deploy.files import write_atomically

    file = ModelFile(target.with_suffix(".onnx"), model.SerializeToString(deterministic=True), described)
    recipe = options.loaded()
    options.check(recipe)
    calibration = Calibration(options.calibrate, options.budget_db, float_sha256)
    with _Talk() as talk:
        if options.recipe is None:
            graph, gate = graph_from_onnx(
                file,
                recipe,
                keep_fp32=options.kept(),
                verify=options.verify,
                calibration=calibration,
                report=talk.say,
            )
            _write_report(options, gate)
            write_atomically(target, graph.SerializeToString(deterministic=True))
            return {"output": str(target), "bytes": target.stat().st_size, "gate": gate}
        result = engine_from_onnx(
            file,
            recipe,
            output=target,
            keep_fp32=options.kept(),
            verify=options.verify,
            calibration=calibration,
            force=options.rebuild,
            report=talk.say,
        )
    _write_report(options, result.manifest.gate)
    return {
        "output": str(result.path),
        "from_cache": result.from_cache,
        "rebuilt_because": list(result.reasons),
        "manifest": asdict(result.manifest),
    }


def engine_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What ``export_engine`` made, a line a fact."""
    manifest = facts.get("manifest")
    if manifest is None:
        return [*gate_lines(facts["gate"]), ("written", f"{facts['output']} ({facts['bytes'] / MEGA:.2f} MB)")]
    source = "taken from the cache" if facts["from_cache"] else f"built in {manifest['build_seconds']:.1f} s"
    if manifest["peak_host_mib"] and not facts["from_cache"]:
        source += f", {manifest['peak_host_mib']:.0f} MiB at its peak"
    lines = [*manifest_lines(manifest), ("built", source)]
    if facts["rebuilt_because"]:
        lines.append(("because", "; ".join(facts["rebuilt_because"])))
    return [*lines, ("written", f"{facts['output']} ({manifest['engine_bytes'] / MEGA:.2f} MB) and its manifest")]


def manifest_lines(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """What a manifest says, a line a fact."""
    target = ", ".join(manifest["compute_capability"]) or "any CPU"
    lines = [
        ("recipe", f"{manifest['recipe']}: {manifest['backend']} {manifest['backend_version']}, for {target}"),
        ("precision", f"{manifest['settings']['precision']}, {len(manifest['layers'])} layers before fusion"),
    ]
    for tensor in manifest["tensors"]:
        shape = "x".join("?" if size is None else str(size) for size in tensor["shape"])
        text = f"{tensor['name']} {tensor['dtype']} {shape}"
        if tensor.get("profile"):
            low, best, high = ("x".join(map(str, shape)) for shape in tensor["profile"])
            text += f", from {low} to {high}, best at {best}"
        lines.append((tensor["mode"], text))
    lines += gate_lines(manifest["gate"])
    return lines + [("warning", warning) for warning in manifest["warnings"]]


def gate_lines(gate: dict[str, Any]) -> list[tuple[str, str]]:
    """What a gate measured, a line a fact."""
    from espan_deploy.precision.gate import Comparison

    lines = []
    for key, name in (("comparison", "compared"), ("engine_comparison", "engine itself")):
        if key in gate:
            figures = {k: v for k, v in gate[key].items() if k != "truth_drop_db"}
            for item in ("psnr_db", "worst_psnr_db"):
                figures[item] = float("inf") if figures[item] is None else figures[item]
            lines.append((name, Comparison(**figures).summary()))
    for key, name in (("kept_fp32", "kept in FP32"), ("kept_in_float", "kept in float"), ("read_twice", "read twice")):
        if gate.get(key):
            lines.append((name, ", ".join(gate[key])))
    return lines + [("note", note) for note in gate.get("notes", ())]


def _write_report(options: EngineOptions, gate: Mapping[str, Any]) -> None:
    from espan_deploy.files import write_atomically

    if options.calibration_report is not None:
        document = {"schema_version": 1, **gate}
        with suppress(OSError):  # said when it is written
            options.calibration_report.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.calibration_report, (json.dumps(document, indent=1) + "\n").encode())


def cache_command(*, clear: bool, as_json: bool) -> None:
    """``--list-cache`` and ``--clear-cache``."""
    from espan_deploy.engine.cache import clear_cache, engines_folder, list_cache

    if clear:
        count, freed = clear_cache()
        removed = {"schema_version": 1, "removed": count, "bytes": freed}
        click.echo(json.dumps(removed) if as_json else f"removed {count} engines, {freed / MEGA:.2f} MB")
        return
    rows = [
        {
            "path": str(entry.path),
            "bytes": entry.bytes,
            "name": entry.manifest.name if entry.manifest else None,
            "recipe": entry.manifest.recipe if entry.manifest else None,
            "backend": f"{entry.manifest.backend} {entry.manifest.backend_version}" if entry.manifest else None,
            "problem": entry.problem,
        }
        for entry in list_cache(verify=True)
    ]
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "folder": str(engines_folder()), "engines": rows}))
        return
    for row in rows:
        what = row["problem"] or f"{row['name']}, {row['recipe']}, {row['backend']}"
        click.echo(f"{Path(str(row['path'])).name}  {row['bytes'] / MEGA:7.2f} MB  {what}")  # type: ignore[operator]
    total = sum(int(str(row["bytes"])) for row in rows)
    click.echo(f"{len(rows)} engines, {total / MEGA:.2f} MB, in {engines_folder()}", err=True)


class _Talk(AbstractContextManager["_Talk"]):
    """What is being done, on stderr: one line that changes on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def say(self, text: str, progress: BuildProgress | None) -> None:
        """Show it."""
        if not self._terminal:
            return
        if progress is not None:
            text = f"{text}: {progress.phase} {progress.step}/{progress.steps}"
        click.echo(f"\r\x1b[K{text[:100]}", nl=False, err=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


def describe_engine_file(path: Path) -> tuple[Manifest, list[tuple[str, str]]]:
    """An engine's manifest, its bytes held against it, and what to print of it. Raises EngineMismatchError."""
    from espan_deploy.engine.build import describe_engine

    manifest = describe_engine(path)
    return manifest, manifest_lines(asdict(manifest))
