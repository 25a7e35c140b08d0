"""What the host costs beside the engine: a network of one convolution in OpenVINO, on one core and on several.

python benchmarks/host.py [--photos DIR] [--cores 1 2] [--formats png jpeg] [--rounds 3]

Whole processes of ``upscale`` are timed in turn, pinned to so many cores. The time of one image of 8x8 pixels is
start-up. For each format: images a second, and core-milliseconds an image (user and system), with start-up and without;
bytes written; and how much more the most cores do than one. What other processes had of the cores meanwhile is told,
and taken off the seconds, as if it had delayed all cores alike.

Then how long each stage holds the interpreter's lock, every hold timed (``lock_holds.c``), where there is a C compiler.
Linux only: other systems cannot pin processes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from espan_deploy.backends.probe import made_up_photograph  # noqa: E402
from espan_deploy.description import ModelDescription  # noqa: E402

SCALE = 4


def one_convolution(path: Path) -> Path:
    """Each pixel sixteen times: the least that is a network."""
    weights = np.zeros((3 * SCALE**2, 3, 1, 1), np.float32)
    for channel in range(3):
        weights[channel * SCALE**2 : (channel + 1) * SCALE**2, channel] = 1
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w"], ["c"]),
            helper.make_node("DepthToSpace", ["c"], ["output"], blocksize=SCALE, mode="CRD"),
        ],
        "one",
        [value("input", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [value("output", TensorProto.FLOAT, ["batch", 3, "out_height", "out_width"])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for key, text in (
        ModelDescription(network="one", title="One convolution", scale=SCALE, halo=0).to_metadata().items()
    ):
        model.metadata_props.add(key=key, value=text)
    onnx.save(model, path)
    return path


@dataclass(frozen=True)
class Timing:
    """One process. seconds: on the wall; busy: of its cores; others: of its cores that other processes had."""

    seconds: float
    busy: float
    others: float
    written: int

    def alone(self, cores: int) -> float:
        """Seconds that it would have taken, had others not delayed it."""
        return self.seconds - self.others / cores


def arguments(photos: Path, output: Path, model: Path, file_format: str) -> list[str]:
    """Of the command."""
    choices = ("--engine", "openvino", "--precision", "fp32", "--format", file_format, "--model", model)
    return ["upscale", str(photos), str(output), *map(str, choices)]


def busy_seconds(cores: set[int]) -> float:
    """Of these cores since the machine started, whoever had them."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.removeprefix("cpu").isdigit() and int(name.removeprefix("cpu")) in cores:
            user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def run(photos: Path, model: Path, file_format: str, cores: int, scratch: Path) -> Timing:
    """One process of the command."""
    pinned = set(sorted(os.sched_getaffinity(0))[:cores])
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        output = Path(folder, "out")
        command = [sys.executable, "cli.py", *arguments(photos, output, model, file_format)]
        used, taken, start = resource.getrusage(resource.RUSAGE_CHILDREN), busy_seconds(pinned), time.perf_counter()
        subprocess.run(
            command,
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, pinned),
        )
        seconds, taken = time.perf_counter() - start, busy_seconds(pinned) - taken
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        written = sum(path.stat().st_size for path in output.iterdir() if not path.name.startswith("."))
    busy = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return Timing(seconds, busy, max(0.0, taken - busy), written)


def lock_holds(photos: Path, model: Path, file_format: str, scratch: Path) -> dict[str, dict[str, float]] | None:
    """By stage, on all cores; None without a C compiler. See ``lock_holds.py``."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library, figures = scratch / "lock_holds.so", scratch / "lock_holds.json"
    source = ROOT / "benchmarks" / "lock_holds.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", str(source), "-o", str(library), "-ldl"], check=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        command = arguments(photos, Path(folder, "out"), model, file_format)
        subprocess.run(
            [sys.executable, "benchmarks/lock_holds.py", str(figures), str(library), *command],
            check=True,
            cwd=ROOT,
            env=os.environ | {"LD_PRELOAD": str(library)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    found: dict[str, dict[str, float]] = json.loads(figures.read_text())
    return found


def summary(whole: list[Timing], idle: list[Timing], cores: int, count: int) -> dict[str, float]:
    """Medians of the rounds of one case. idle: start-ups."""
    alone = statistics.median(timing.alone(cores) for timing in whole)
    start_up = statistics.median(timing.seconds for timing in idle)  # on one core: what others have of the rest is free
    busy, start_up_busy = (statistics.median(timing.busy for timing in found) for found in (whole, idle))
    return {
        "images_per_s": count / alone,
        "images_per_s_without_start_up": count / (alone - start_up),
        "core_ms": busy * 1e3 / count,
        "core_ms_without_start_up": (busy - start_up_busy) * 1e3 / count,
        "start_up_s": start_up,
        "images_per_s_as_timed": count / statistics.median(timing.seconds for timing in whole),
        "others_share": statistics.median(timing.others / timing.seconds / cores for timing in whole),
        "bytes": float(whole[0].written),
    }


def main() -> None:
    """Measure in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photographs; 120 of 481x321 are made up if left out")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--formats", nargs="+", choices=["png", "jpeg"], default=["png", "jpeg"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = one_convolution(scratch / "one.onnx")
        photos = options.photos.resolve() if options.photos else scratch / "photos"
        tiny = scratch / "tiny"
        tiny.mkdir()
        Image.new("RGB", (8, 8)).save(tiny / "tiny.png")
        if options.photos is None:
            photos.mkdir()
            base = made_up_photograph(481, 1)[:321]
            for index in range(120):
                Image.fromarray(np.roll(base, 4 * index, axis=1)).save(photos / f"{index:03}.jpg", quality=92)
        count = len(list(photos.iterdir()))
        cases = [(file_format, cores) for file_format in options.formats for cores in options.cores]
        rounds: dict[tuple[str, int], tuple[list[Timing], list[Timing]]] = {case: ([], []) for case in cases}
        for _ in range(options.rounds):
            for file_format, cores in cases:
                whole, idle = rounds[file_format, cores]
                whole.append(run(photos, model, file_format, cores, scratch))
                idle.append(run(tiny, model, file_format, cores, scratch))
        holds = {name: lock_holds(photos, model, name, scratch) for name in options.formats}
    for file_format in options.formats:
        found = [summary(*rounds[file_format, cores], cores, count) for cores in options.cores]
        figures[file_format] = {"cores": dict(zip(map(str, options.cores), found, strict=True))}
        for cores, values in zip(options.cores, found, strict=True):
            print(
                f"{file_format}, {cores} cores: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            )
        for name in ("images_per_s", "images_per_s_without_start_up"):
            ratio = found[-1][name] / found[0][name]
            figures[file_format][f"ratio of {name}"] = ratio
            print(f"{file_format}, {options.cores[-1]} cores over {options.cores[0]}: {ratio:.2f} times {name}")
        stages = figures[file_format]["lock"] = holds[file_format]
        for stage, values in (stages or {}).items():
            print(
                f"{file_format}, lock, {stage}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            )
        if stages:
            serial = sum(values["cpu_ms_an_image"] for values in stages.values())
            print(f"{file_format}: {serial:.2f} ms an image under the lock")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
