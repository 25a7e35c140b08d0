"""What is examined: the driver, the GPU, every engine in every precision, the recipes for GPUs, and a whole run."""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from espan_deploy import backends
from espan_deploy.backends import Backend
from espan_deploy.backends.base import Images, Runner
from espan_deploy.backends.cuda_memory import driver_cuda_version, driver_unavailable_reason, gpu
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.backends.precision import least_db, psnr_db
from espan_deploy.backends.probe import PROBES, made_up_photograph
from espan_deploy.doctor.examination import Check, Facts
from espan_deploy.errors import BackendUnavailableError, InputShapeError, VerificationError
from espan_deploy.recipes import ENGINE_BACKENDS, load_recipe, recipe_names
from espan_deploy.timing import Stop, measure

SIZES = ((256, 256), (340, 510))
"""Height and width of what is timed: the usual square, and the challenge's photographs."""

ODD = (61, 83)
"""Another size, in a batch of three: engines that are right at one size only are found so."""

EXACT_DB = 55.0
"""What FP32 must have against ONNX Runtime's on the CPU: roundings of bytes that fall the other way, and no more."""

MIXED = 24
"""Images of as many sizes, one after another: what changing the shape costs."""

RUNS = 200

COPY_BYTES = 64 << 20
COPIES = 10

PHOTOGRAPHS = {"cpu": 24, "gpu": 400}
"""In the whole run, 481x321 each."""


def all_checks(model: ModelFile, *, seconds: float, threads: int | None = None) -> list[Check]:
    """Everything, the simplest first. seconds: for each timing."""
    checks = [Check("driver", _driver), Check("GPU", _gpu)]
    for backend in backends.BACKENDS:
        for precision in filter(model.has, backend.module.PRECISIONS):
            find_out = partial(_engine, backend, precision, model, seconds, threads)
            checks.append(Check(f"{backend.name} {precision}", find_out, group=backend.name))
    for name in recipe_names():
        if load_recipe(name).backend in ENGINE_BACKENDS:
            checks.append(Check(f"recipe {name}", partial(_recipe, name, model, seconds, threads)))
    checks.append(Check("upscale", partial(_whole_run, model, threads)))
    return checks


def _driver() -> Facts:
    if (reason := driver_unavailable_reason()) is not None:
        raise BackendUnavailableError(reason, hint="install NVIDIA's driver, 580 or later")
    return {"cuda": driver_cuda_version()}


def _gpu() -> Facts:
    """Through pycuda: the device, its memory, and pinned copies both ways."""
    device = gpu()
    with device.current():
        free, total = device.free_bytes()
        host, memory, stream = device.pinned(COPY_BYTES), device.allocate(COPY_BYTES), device.stream()
        began, ended = device.event(), device.event()
        rates = {}
        for way in ("in", "out"):
            began.record(stream)
            for _ in range(COPIES):
                if way == "in":
                    device.copy_in(memory, host.array, stream)
                else:
                    device.copy_out(host.array, memory, stream)
            ended.record(stream)
            ended.synchronize()
            rates[f"copy_{way}_gb_per_s"] = COPIES * COPY_BYTES / 1e6 / max(ended.time_since(began), 1e-6)
        for thing in (host, memory, began, ended, stream):
            thing.free()
    return {
        "name": device.name,
        "capability": device.capability,
        "free_gib": free / 2**30,
        "total_gib": total / 2**30,
        **rates,
    }


def _engine(backend: Backend, precision: str, model: ModelFile, seconds: float, threads: int | None) -> Facts:
    """Open it, which builds it, hold it against FP32 on the CPU, and time it."""
    backend.require()
    started = time.perf_counter()
    with backend.open(model, precision=precision, threads=threads) as runner:
        opened = time.perf_counter() - started
        return {"version": backend.version, "open_seconds": opened, **_judged(runner, model, precision, seconds)}


def _recipe(name: str, model: ModelFile, seconds: float, threads: int | None) -> Facts:
    """Build what it says, through its gate; and where this machine can run it, as any engine."""
    from espan_deploy.engine.build import engine_from_onnx

    recipe = load_recipe(name)
    result = engine_from_onnx(model, recipe)
    manifest = result.manifest
    facts = {
        "engine_bytes": manifest.engine_bytes,
        "build_seconds": manifest.build_seconds,
        "from_cache": result.from_cache,
        "graph_psnr_db": manifest.gate.get("comparison", {}).get("psnr_db"),
        "engine_psnr_db": manifest.gate.get("engine_comparison", {}).get("psnr_db"),
    }
    backend = backends.get(recipe.backend)
    if (reason := backend.unavailable_reason()) is not None:
        return {**facts, "not_run": reason}
    if manifest.compute_capability and gpu().capability not in manifest.compute_capability:
        return {**facts, "not_run": f"it is for {', '.join(manifest.compute_capability)}"}
    return {**facts, **_engine(backend, recipe.precision, read_model(result.path), seconds, threads)}


def _judged(runner: Runner, model: ModelFile, precision: str, seconds: float) -> Facts:
    """How near its bytes are to FP32's, and what it takes. Raises VerificationError where they are too far."""
    images = [make(96, model.description.size_multiple)[None] for make in PROBES.values()]
    images.append(_batch(model, 3, *ODD))
    facts: Facts = {"info": dict(runner.info.details), "psnr_db": _nearness(runner, model, images)}
    least = EXACT_DB if precision == "fp32" else least_db(precision)
    worst = min(facts["psnr_db"], default=None)
    if worst is not None and worst < least:
        raise VerificationError(f"it is {worst:.1f} dB from FP32, expected {least:.0f}", hint="send this report")
    facts["timings"] = [timing for size in SIZES for timing in _timings(runner, model, *size, seconds)]
    facts["mixed_ms_per_image"] = _mixed(runner, model)
    return facts


def _nearness(runner: Runner, model: ModelFile, images: list[Images]) -> list[float]:
    """In decibels, of each; none where there is nothing to hold it against."""
    reference = backends.get("onnxruntime")
    if model.backend or reference.unavailable_reason() is not None:
        return []  # an engine's own gate held it against its graph
    with reference.open(model, precision="int8" if model.only_int8 else "fp32") as exact:
        return [psnr_db(exact.infer(image), runner.infer(image)) for image in images]


def _timings(runner: Runner, model: ModelFile, height: int, width: int, seconds: float) -> list[Facts]:
    found = []
    for count in sorted({1, int(runner.info.details.get("max_batch", 1))}):
        images = _batch(model, count, height, width)

        def call(batch: Images) -> Any:
            runner.infer(batch)
            return getattr(runner, "last_stages_ms", None)

        try:
            series = measure({"": call}, [images], Stop(RUNS, seconds)).series[""]
        except InputShapeError as exc:
            found.append({"batch": count, "height": height, "width": width, "refused": exc.message})
            continue
        median = float(np.median(series.latencies_ms))
        found.append(
            {
                "batch": count,
                "height": images.shape[1],
                "width": images.shape[2],
                "first_ms": series.warm_up.first_ms if series.warm_up else None,
                "median_ms": median,
                "p99_ms": float(np.percentile(series.latencies_ms, 99)),
                "images_per_s": count * 1e3 / median,
                "runs": len(series.latencies_s),
                "stages_ms": {stage: statistics.median(values) for stage, values in series.stages_ms.items()},
            }
        )
    return found


def _mixed(runner: Runner, model: ModelFile) -> float:
    """Milliseconds an image where every image has another size, around 128x128."""
    batches = [_batch(model, 1, 100 + 2 * index, 150 - 2 * index) for index in range(MIXED)]
    started = time.perf_counter()
    for batch in batches:
        runner.infer(batch)
    return (time.perf_counter() - started) * 1e3 / MIXED


def _batch(model: ModelFile, count: int, height: int, width: int) -> Images:
    """(count, height, width, 3) of a made-up photograph, at a size that the model takes."""
    multiple = model.description.size_multiple
    height, width = (-(-max(side, model.description.min_size) // multiple) * multiple for side in (height, width))
    photograph = made_up_photograph(max(height, width), multiple)[:height, :width]
    return np.ascontiguousarray(np.stack([np.roll(photograph, 7 * index, axis=1) for index in range(count)]))


def _whole_run(model: ModelFile, threads: int | None) -> Facts:
    """Photographs in a folder, as a user would: decoded, enlarged, encoded and on the disk."""
    from PIL import Image

    from espan_deploy.pipeline.opened import UpscaleSettings
    from espan_deploy.pipeline.upscale import Upscaling

    count = PHOTOGRAPHS["cpu" if driver_unavailable_reason() else "gpu"]
    with tempfile.TemporaryDirectory(prefix="espan-deploy-doctor-") as folder:
        source = Path(folder) / "in"
        source.mkdir()
        photograph = made_up_photograph(481, 1)[:321]
        for index in range(count):
            Image.fromarray(np.roll(photograph, 3 * index, axis=1)).save(source / f"{index:03d}.png")
        settings = UpscaleSettings(threads=threads)
        report = Upscaling(source, Path(folder) / "out", model.path, settings).run()
    done = report.count("done")
    if done != count:
        problems = [file.error for file in report.files if file.status == "failed"]
        raise VerificationError(f"{count - done} of {count} photographs failed: {problems[0] if problems else ''}")
    document = report.to_dict()
    work = report.seconds - report.startup_seconds
    return {
        "engine": document["engine"],
        "images": count,
        "startup_seconds": report.startup_seconds,
        "images_per_s": count / work,
        "latency_ms": document["latency_ms"],
    }
