"""``espan-deploy export``: checkpoint or ONNX file -> folded, verified ONNX model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from espan_deploy.cli.engines import (
    EngineOptions,
    cache_command,
    engine_lines,
    engine_options,
    export_engine,
    gate_lines,
)
from espan_deploy.cli.main import json_option
from espan_deploy.errors import InputError

if TYPE_CHECKING:
    from espan_deploy.deploy import Deployment
    from espan_deploy.description import ModelDescription
    from espan_deploy.fold import FoldReport
    from espan_deploy.graph import Complexity
    from espan_deploy.serve.triton import TileBackend

GIGA, MILLION = 1e9, 1e6

CHECKPOINT_SUFFIX = ".safetensors"


class SizeType(click.ParamType[tuple[int, int]]):
    """``256x256``: height, then width."""

    name = "HEIGHTxWIDTH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Two positive whole numbers."""
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no size such as 256x256 (height x width)", param, ctx)
        return int(parts[0]), int(parts[1])


@click.command(
    "export",
    epilog="""\b
Examples:
  espan-deploy export espan.pth -o espan.onnx
  espan-deploy export other.onnx -o folded.onnx --fold-report report.json
  espan-deploy export espan.pth --recipe a6000-rtx-fp16
  espan-deploy export espan.pth -o half.onnx --precision fp16 --pixels uint8
  espan-deploy export espan.pth -o espan_int8.onnx --precision int8 --calibrate photos/
  espan-deploy export espan.onnx --triton repository/
  espan-deploy export mine.pth --network model.py:MyNet --network-args '{"upscale": 4}'
""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write; .safetensors for the folded checkpoint.  [default: CHECKPOINT's name, .onnx, here]",
)
@click.option("--network", "network_class", metavar="FILE.py:CLASS", help="A network class of your own.")
@click.option(
    "--network-args", default="{}", metavar="JSON", help="Its arguments, or what a checkpoint does not tell, as JSON."
)
@click.option("--weights", metavar="KEY", help="Of a checkpoint that holds several state dicts, which: params_ema.")
@click.option("--value-range", type=click.FloatRange(min=0, min_open=True), help="What white is: 1 or 255.")
@click.option(
    "--fold-borders",
    type=click.Choice(["exact", "approximate"]),
    default="exact",
    show_default=True,
    help="Whether to fold also what then differs at the image's border.",
)
@click.option("--no-fold", is_flag=True, help="Export every branch as it was trained.")
@click.option("--static", "static_size", type=SizeType(), help="Fix height and width, for networks that need it.")
@click.option(
    "--fold-report", type=click.Path(path_type=Path), metavar="FILE", help="Write all sites and refusals, JSON."
)
@click.option("--sites", "show_sites", is_flag=True, help="Print them as a table.")
@click.option(
    "--triton",
    "repository",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write a repository for NVIDIA's Triton inference server.",
)
@click.option(
    "--triton-tiles",
    type=click.Choice(["onnxruntime", "python"]),
    help="Who computes there: Triton's ONNX Runtime, or this package in Triton's Python.  [default: onnxruntime]",
)
@click.option("--list-cache", is_flag=True, help="List the engines that are kept, and stop.")
@click.option("--clear-cache", is_flag=True, help="Remove them, and stop.")
@json_option
@engine_options
def command(  # noqa: PLR0917 - click passes options by name
    checkpoint: Path | None,
    output: Path | None,
    network_class: str | None,
    network_args: str,
    weights: str | None,
    value_range: float | None,
    fold_borders: str,
    no_fold: bool,
    static_size: tuple[int, int] | None,
    fold_report: Path | None,
    show_sites: bool,
    repository: Path | None,
    triton_tiles: TileBackend | None,
    list_cache: bool,
    clear_cache: bool,
    as_json: bool,
    engine: EngineOptions,
) -> None:
    """Fold CHECKPOINT (.pth .pt .ckpt .safetensors, or an .onnx graph) into a verified ONNX model.

    The network is recognised from the checkpoint's keys and shapes. Every linear part is folded into single
    convolutions, proven equal in float64, and the result is compared with the network itself before it is written.
    """
    from espan_deploy.deploy import deploy_file, deployment_json, folded_checkpoint
    from espan_deploy.files import write_atomically
    from espan_deploy.sources import ONNX_SUFFIX

    if list_cache or clear_cache:
        cache_command(clear=clear_cache, as_json=as_json)
        return
    if checkpoint is None:
        raise click.UsageError("Missing argument 'CHECKPOINT'.")
    target = _target(checkpoint, output, engine)
    try:
        arguments = json.loads(network_args)
    except ValueError as exc:
        raise click.UsageError(f"--network-args is not JSON: {exc}") from exc
    if not isinstance(arguments, dict):
        raise click.UsageError("--network-args takes a JSON object, such as '{\"upscale\": 4}'")
    of_networks = {"--network": network_class, "--static": static_size}
    of_checkpoints = {"--network-args": arguments, "--weights": weights}
    of_graphs = {"--value-range": value_range, "--no-fold": no_fold, "--fold-report": fold_report}
    if checkpoint.suffix == ONNX_SUFFIX:
        _refuse({**of_networks, **of_checkpoints}, f"{checkpoint.name} is a graph already, and takes no")
    _check_repository(repository, triton_tiles, alone=not engine.wanted and output is None)
    if target.suffix == CHECKPOINT_SUFFIX:
        _refuse({**of_networks, **of_graphs, "--sites": show_sites}, f"for a {CHECKPOINT_SUFFIX} file there is no")
        write_atomically(target, folded_checkpoint(checkpoint, network_args=arguments, weights=weights))
        click.echo(
            json.dumps({"schema_version": 1, "output": str(target)})
            if as_json
            else f"wrote the deploy form, {target} ({target.stat().st_size / MILLION:.2f} MB)"
        )
        return
    deployment = deploy_file(
        checkpoint,
        network_class=network_class,
        network_args=arguments,
        weights=weights,
        value_range=value_range,
        borders="approximate" if fold_borders == "approximate" else "exact",
        folding=not no_fold,
        static_size=static_size,
    )
    judged = _judged(deployment, engine)
    made = _written(deployment, target, engine, (repository, triton_tiles), _sha256_of_ours(checkpoint))
    if fold_report is not None:
        write_atomically(fold_report, json.dumps(deployment.report.to_json(), indent=2).encode())
    if as_json:
        click.echo(
            json.dumps(
                {
                    "schema_version": 1,
                    "output": str(repository or target),
                    **deployment_json(deployment),
                    **judged,
                    **made,
                }
            )
        )
    else:
        click.echo(_summary(deployment, repository or target, _lines(made), judged))
        if show_sites:
            click.echo("\n" + fold_table(deployment.report))


def _check_repository(repository: Path | None, tiles: TileBackend | None, *, alone: bool) -> None:
    """Raise click's error where options do not go together."""
    if repository is None:
        _refuse({"--triton-tiles": tiles}, "without --triton there is no")
    elif not alone:
        raise click.UsageError("--triton decides what is written: leave out -o, --recipe, --precision and --pixels")


def _written(
    deployment: Deployment,
    target: Path,
    engine: EngineOptions,
    triton: tuple[Path | None, TileBackend | None],
    float_sha256: str,
) -> dict[str, Any]:
    """Write what was asked for; what there is to say of it. float_sha256: of the model given, where it is ours."""
    from espan_deploy.backends.model import ModelFile
    from espan_deploy.files import write_atomically
    from espan_deploy.serve.triton import write_repository

    if engine.wanted:
        return export_engine(deployment.model, deployment.description, engine, target, float_sha256=float_sha256)
    repository, tiles = triton
    data = deployment.model.SerializeToString(deterministic=True)
    if repository is None:
        write_atomically(target, data)
        return {}
    written = write_repository(
        ModelFile(target, data, deployment.description), repository, backend=tiles or "onnxruntime"
    )
    return {"written": [str(path) for path in written]}


def _judged(deployment: Deployment, engine: EngineOptions) -> dict[str, Any]:
    """The gate's figures of a graph that came in INT8; of another there are none here.

    Raises VerificationError where they are outside of the budget.
    """
    from espan_deploy.backends.model import INT8
    from espan_deploy.precision.codes import budget_of, codes_within_budget
    from espan_deploy.precision.images import MAX_SIDE, fitted, generated_images, load_images

    description = deployment.description
    if description.precision != INT8 or engine.wanted:
        return {}
    images = load_images(engine.verify, description.scale) if engine.verify else generated_images(description.scale)
    rows, columns = [(side, side) for side in description.fixed_size] if description.fixed_size else [(1, MAX_SIDE)] * 2
    shown = fitted(images, description.scale, height=rows, width=columns, multiple=description.size_multiple)
    comparison, notes = codes_within_budget(deployment.model, description, shown, budget_of(engine.budget_db))
    return {"gate": {"comparison": comparison.to_dict(), "notes": notes}}


def _sha256_of_ours(checkpoint: Path) -> str:
    """Of an FP32 model that this command wrote, which INT8 then belongs to; "" where it is something else."""
    from espan_deploy.backends.model import read_model
    from espan_deploy.errors import EspanDeployError
    from espan_deploy.sources import ONNX_SUFFIX

    if checkpoint.suffix != ONNX_SUFFIX:
        return ""
    try:
        return read_model(checkpoint).sha256
    except EspanDeployError:
        return ""


def _lines(made: dict[str, Any]) -> list[tuple[str, str]] | None:
    if "written" in made:
        return [("written", path) for path in made["written"]]
    return engine_lines(made) if made else None


def _refuse(options: dict[str, Any], because: str) -> None:
    """Raise click's error for the first option that was given and would do nothing."""
    for name, value in options.items():
        if value:
            raise click.UsageError(f"{because} {name}")


def _target(checkpoint: Path, output: Path | None, engine: EngineOptions) -> Path:
    """Where to write. Raises click's error for a name that does not fit, InputError for a place that cannot be."""
    suffix = engine.suffix() if engine.wanted else ".onnx"
    target = output or Path(checkpoint.with_suffix(suffix).name)
    if engine.wanted and target.suffix != suffix:
        raise click.UsageError(f"-o takes a name that ends in {suffix} for this, not {target.name}")
    if not engine.wanted and target.suffix not in (".onnx", CHECKPOINT_SUFFIX):
        raise click.UsageError(f"-o takes a name that ends in .onnx or {CHECKPOINT_SUFFIX}, not {target.name}")
    if target.exists() and target.samefile(checkpoint):
        raise InputError(f"{target} is the file that is being exported", hint="name another output with -o")
    if not target.absolute().parent.is_dir():
        raise InputError(f"there is no folder {target.absolute().parent} to write {target.name} to")
    return target


def _summary(deployment: Deployment, target: Path, engine: list[tuple[str, str]] | None, judged: dict[str, Any]) -> str:
    """What was made, a line a fact."""
    description, before, after = deployment.description, deployment.before, deployment.after
    halo = f"depends on {description.halo} pixels around"
    if description.halo is None:
        halo = f"tiles are not exact: {description.halo_reason or 'an operator sees the whole image'}"
    lines = [
        ("network", f"{description.title}, {description.form} form, x{description.scale}"),
        ("parameters", f"{before.parameters / MILLION:.4f} M, folded {after.parameters / MILLION:.4f} M"),
        ("multiply-adds", f"{_giga(before)}, folded {_giga(after)}, at {before.height}x{before.width}"),
        ("convolutions", f"{before.convolutions}, folded {after.convolutions}"),
        ("input", f"(N, 3, H, W) float32 RGB in [0, {description.value_range:g}], {halo}"),
        ("output", f"(N, 3, {description.scale}H, {description.scale}W) float32"),
        *_fitting(description),
        ("verified", f"largest difference from the network {deployment.largest_difference:.1e} of its largest value"),
        ("at", ", ".join(dict.fromkeys(f"{height}x{width}" for _, height, width in description.verified_at))),
    ]
    if deployment.border_difference > 0:
        border = f"{deployment.border_difference:.1e}, because borders were folded approximately"
        lines.append(("at the border", border))
    lines += gate_lines(judged["gate"]) if judged else []
    lines += engine or [("written", f"{target} ({target.stat().st_size / MILLION:.2f} MB)")]
    return "\n".join(f"{name:<14} {text}" for name, text in lines)


def _fitting(description: ModelDescription) -> list[tuple[str, str]]:
    """What becomes of images whose size the network does not take, where there are such sizes."""
    least, multiple = description.min_size, description.size_multiple
    if least == multiple == 1:
        return []
    wanted = [f"{least}x{least} and larger"] * (least > 1) + [f"multiples of {multiple}"] * (multiple > 1)
    return [("sizes", f"{', '.join(wanted)}; others are continued, and the result is cut")]


def _giga(cost: Complexity) -> str:
    return "unknown" if cost.multiply_adds is None else f"{cost.multiply_adds / GIGA:.4f} G"


def fold_table(report: FoldReport) -> str:
    """Every site, a line each, then the refusals by their reason."""
    lines = [f"{'folded':<44} {'conv':>9} {'multiply-adds/px':>19}  {'error inside, border':<20}  now"]
    for site in report.sites:
        convolutions = f"{site.convolutions_before}->{site.convolutions_after}"
        costs = f"{site.multiply_adds_before}->{site.multiply_adds_after}"
        errors = f"{site.error_inside:.0e}, {site.error_border:.0e}"
        lines.append(f"{site.path:<44} {convolutions:>9} {costs:>19}  {errors:<20}  {' + '.join(site.kernels)}")
    by_reason: dict[str, list[str]] = {}
    for refusal in report.refusals:
        by_reason.setdefault(refusal.reason, []).append(refusal.path)
    for reason, paths in by_reason.items():
        lines.append(f"left ({len(paths)}): {reason}: {', '.join(paths)}")
    return "\n".join(lines)
