"""Every released system of both challenges through the command line, to an FP16 engine: a row each, and their table.

python benchmarks/systems.py export SHARED MODELS [PATTERN ...]      # checkpoint -> ONNX, beside the entrants' output
python benchmarks/systems.py engines [--keep auto] MODELS [PATTERN ...]  # ONNX -> the FP16 gate, and an SM86 engine
python benchmarks/systems.py table MODELS                            # docs/systems.md of what was measured

SHARED holds ``checkpoints`` and ``golden``; MODELS gets NAME.onnx and NAME.json. A PATTERN is part of a checkpoint's
name; what has a row already is left alone. Nothing is kept of a system that fails but the reason. Needs the extras
``cpu``, ``export`` and ``rtx``, no GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from espan_deploy.backends.model import ModelFile, read_model  # noqa: E402
from espan_deploy.backends.trt_build import build_engine  # noqa: E402
from espan_deploy.backends.trt_module import load_module  # noqa: E402
from espan_deploy.engine.build import graph_from_onnx  # noqa: E402
from espan_deploy.errors import EspanDeployError  # noqa: E402
from espan_deploy.precision.gate import Comparison  # noqa: E402
from espan_deploy.proof import model_function  # noqa: E402
from espan_deploy.recipes import Budget, Span, for_sizes, load_recipe  # noqa: E402

RECIPE = "a6000-rtx-fp16"

ARGUMENTS = {"team44_SPAN_random": {"img_range": 1.0}}
"""What shapes do not tell; the entrants' own."""

ANY = Budget(min_psnr_db=0, max_truth_drop_db=math.inf, max_share_off_by_more=1, max_nonfinite=1 << 40)


Row = dict[str, Any]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("export", "engines"):
        command = commands.add_parser(name)
        if name == "export":
            command.add_argument("shared", type=Path)
        else:
            command.add_argument("--keep", choices=("auto",), help="find what must stay FP32 where the gate says no")
            command.add_argument("--largest", type=int, metavar="SIDE", help="of the images that the engines take")
        command.add_argument("models", type=Path)
        command.add_argument("patterns", nargs="*", metavar="PATTERN")
        command.add_argument("--again", action="store_true", help="also what has a row")
        command.add_argument("--limit", type=float, metavar="SECONDS", help="for each system; more counts as failed")
    commands.add_parser("table").add_argument("models", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "export":
        export_systems(
            arguments.shared, arguments.models, arguments.patterns, again=arguments.again, limit=arguments.limit
        )
    elif arguments.command == "engines":
        build_engines(
            arguments.models,
            arguments.patterns,
            keep=arguments.keep,
            largest=arguments.largest,
            again=arguments.again,
            limit=arguments.limit,
        )
    else:
        from systems_table import write_tables

        write_tables(arguments.models)


def export_systems(shared: Path, models: Path, patterns: list[str], *, again: bool, limit: float | None) -> None:
    """Export every checkpoint that is asked for, one after another, as processes of their own."""
    models.mkdir(parents=True, exist_ok=True)
    checkpoints = {f"{path.parent.name}_{path.stem}": path for path in sorted((shared / "checkpoints").glob("*/*"))}
    for key in _wanted(checkpoints, patterns):
        checkpoint, row = checkpoints[key], models / f"{key}.json"
        if again or not row.exists():
            golden = shared / "golden" / f"{key}.npz"
            _store(row, export_system(checkpoint, golden, models / f"{key}.onnx", limit=limit))


def export_system(checkpoint: Path, golden: Path, target: Path, *, limit: float | None) -> Row:
    """Through the command line, within limit seconds; then the golden image through the file that was written."""
    command = [sys.executable, str(ROOT / "cli.py"), "export", str(checkpoint), "-o", str(target), "--json"]
    if arguments := ARGUMENTS.get(checkpoint.stem):
        command += ["--network-args", json.dumps(arguments)]
    start, worked = time.perf_counter(), _cpu_seconds()
    named = f"{checkpoint.parent.name}/{checkpoint.name}"
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"checkpoint": named, "failed": {"message": f"not exported within {limit:g} s"}}
    row: Row = {
        "checkpoint": named,
        "export_seconds": time.perf_counter() - start,
        "export_cpu_seconds": _cpu_seconds() - worked,
    }
    if process.returncode != 0:
        failed = json.loads(process.stdout)["error"] if process.stdout else {"message": process.stderr.strip()}
        return {**row, "failed": failed}
    made = json.loads(process.stdout)
    row |= {key: value for key, value in made.items() if key not in ("fold", "output", "schema_version")}
    row["sites"] = made["fold"]["sites"]
    file = read_model(target)
    with np.load(golden) as pair:
        low, expected = pair["lr"], pair["sr"]
    upscaled = model_function(_model(file), file.description, target)(low)
    row["golden_error"] = float(np.abs(upscaled - expected).max()) / made["value_range"]
    return row


def build_engines(
    models: Path, patterns: list[str], *, keep: str | None, largest: int | None, again: bool, limit: float | None
) -> None:
    """Through the FP16 gate and TensorRT-RTX, every exported model that is asked for, as processes of their own.

    What takes longer than limit seconds is tried once more without keep.
    """
    paths = {path.stem: path for path in sorted(models.glob("*.json"))}
    for path in map(paths.__getitem__, _wanted(paths, patterns)):
        row = json.loads(path.read_text())
        if "failed" in row or ("half" in row and not again):
            continue
        model = path.with_suffix(".onnx")
        half = _half_within(limit, model, keep, largest)
        half = half or (_half_within(limit, model, None, largest) if keep else None)
        row["half"] = half or {"not_done": f"not done within {limit:g} s"}
        _store(path, row)


def _half_within(limit: float | None, model: Path, keep: str | None, largest: int | None) -> Row | None:
    """What :func:`half_system` gives in a process of its own, or None where that takes longer than limit seconds."""
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_send_half, args=(sender, model, keep, largest))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(limit) else None
    except EOFError:
        return {"not_done": "its process died"}
    finally:
        process.kill()
        process.join()


def _send_half(sender: Any, model: Path, keep: str | None, largest: int | None) -> None:
    sender.send(half_system(model, keep, largest))


def half_system(path: Path, keep: str | None, largest: int | None = None) -> Row:
    """What the gate says, and TensorRT-RTX; the engine in FP32 where there is no FP16 graph that passes.

    largest: height and width that the engine takes at most and is tuned for; by default the recipe's.
    Without keep, the gate's figures are taken whatever they are: which layers are responsible takes it many minutes.
    """
    file, recipe = read_model(path), load_recipe(RECIPE)
    if largest is not None:
        span = Span(1, largest, largest)
        recipe = replace(recipe, profile=replace(recipe.profile, height=span, width=span))
    sized = for_sizes(recipe, least=file.description.min_size, multiple=file.description.size_multiple)
    judged = sized if keep else replace(sized, budget=ANY)
    half: Row = {"engine_precision": "fp16", "largest": largest}
    start = time.perf_counter()
    try:
        graph, gate = graph_from_onnx(file, judged, keep_fp32=keep, report=lambda text, _: _say(text))
        figures = {key: value for key, value in gate["comparison"].items() if key != "truth_drop_db"}
        half |= {
            **{key: figures[key] for key in ("psnr_db", "off_by_one", "off_by_more", "nonfinite")},
            "kept_fp32": gate["kept_fp32"],
            "fp32_operators": _operators(graph, gate["conversion"]["fp32_nodes"]),
        }
        for key in ("psnr_db", "worst_psnr_db"):
            figures[key] = math.inf if figures[key] is None else figures[key]
        if problems := Comparison(**figures).violations(sized.budget):
            half["refused"] = "; ".join(problems)
    except EspanDeployError as exc:
        half["refused"] = exc.message
    if "refused" in half:
        half["engine_precision"] = "fp32"
        sized = replace(sized, precision="fp32")
        graph, _ = graph_from_onnx(file, sized)
    half["gate_seconds"] = time.perf_counter() - start
    try:
        built = build_engine(load_module(recipe.backend), graph.SerializeToString(), sized)
        half |= {"engine_bytes": len(built.data), "build_seconds": built.build_seconds}
    except EspanDeployError as exc:
        half["not_built"] = exc.message
    return half


def _cpu_seconds() -> float:
    """Of all child processes that ended: others may use the machine too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _operators(graph: Any, reasons: dict[str, str]) -> list[str]:
    """``ReduceMean: a sum over the image``, each once; a cast that was dropped is none."""
    types = {node.name: node.op_type for node in graph.graph.node}
    return sorted({f"{types[name]}: {reason}" for name, reason in reasons.items() if name in types})


def _model(file: ModelFile) -> Any:
    import onnx

    return onnx.load_from_string(file.data)


def _wanted(keys: Iterable[str], patterns: list[str]) -> list[str]:
    """Those that hold a pattern, in the patterns' order; all where there is none."""
    names = list(keys)
    return list(dict.fromkeys(key for pattern in patterns or [""] for key in names if pattern in key))


def _store(path: Path, row: Row) -> None:
    path.write_text(json.dumps(row, indent=1))
    shown = {k: v for k, v in row.items() if k in ("checkpoint", "failed", "export_seconds", "golden_error", "half")}
    print(json.dumps(shown), flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
