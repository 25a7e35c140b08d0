"""What the host costs beside the engine: a network of one convolution in OpenVINO, on one core and on several.

python benchmarks/host.py [--photos DIR] [--cores 1 2] [--formats png jpeg] [--rounds 3]

Whole processes of ``upscale`` are timed in turn, pinned to so many cores; the time of one image of 8x8 pixels, which is
start-up, is taken off. For each format: images a second, core-milliseconds an image (user and system, start-up taken
off), bytes written, and how much more the most cores do than one. Then the longest time that an encoder keeps the
interpreter's lock, as seen by a thread that wants it every 0.2 ms. Linux only: other systems cannot pin processes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from espan_deploy.backends.probe import made_up_photograph  # noqa: E402
from espan_deploy.description import ModelDescription  # noqa: E402
from espan_deploy.pipeline import jpeg, png  # noqa: E402

SCALE = 4
TICK_SECONDS = 0.0002


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


def run(photos: Path, model: Path, file_format: str, cores: int, scratch: Path) -> tuple[float, float, int]:
    """Seconds, core-seconds and bytes written of one process."""
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        choices = ("--engine", "openvino", "--precision", "fp32", "--format", file_format, "--model", model)
        command = [sys.executable, "cli.py", "upscale", str(photos), str(Path(output, "out")), *map(str, choices)]
        pinned = sorted(os.sched_getaffinity(0))[:cores]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            command,
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, pinned),
        )
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        written = sum(path.stat().st_size for path in Path(output, "out").iterdir() if not path.name.startswith("."))
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, written


def longest_hold(file_format: str) -> float:
    """Milliseconds, while ten strips' worth of a photograph are encoded."""
    pixels = np.kron(made_up_photograph(480, 1)[:320], np.ones((4, 4, 1), np.uint8))
    work = {
        "png": lambda: [png.deflated(strip, 1) for strip in png.strips(pixels)],
        "jpeg": lambda: jpeg.compressor()(pixels, 95),
    }[file_format]
    work()
    longest, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not ended.is_set():
            time.sleep(TICK_SECONDS)
            now = time.perf_counter()
            longest, last = max(longest, now - last - TICK_SECONDS), now

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(10):
        work()
    ended.set()
    watcher.join()
    return longest * 1e3


def main() -> None:
    """Measure in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photographs; 120 of 481x321 are made up if left out")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--formats", nargs="+", choices=["png", "jpeg"], default=["png", "jpeg"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    figures: dict[str, dict[str, object]] = {}
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
        rounds: dict[tuple[str, int], list[tuple[float, float, int]]] = {case: [] for case in cases}
        for _ in range(options.rounds):
            for file_format, cores in cases:
                seconds, busy, written = run(photos, model, file_format, cores, scratch)
                idle_seconds, idle_busy, _ = run(tiny, model, file_format, cores, scratch)
                rounds[file_format, cores].append((seconds - idle_seconds, busy - idle_busy, written))
    for file_format in options.formats:
        rates = {}
        for cores in options.cores:
            found = rounds[file_format, cores]
            rates[cores] = count / statistics.median(seconds for seconds, _, _ in found)
            each = statistics.median(busy for _, busy, _ in found) * 1e3 / count
            print(f"{file_format}, {cores} cores: {rates[cores]:.1f} images/s, {each:.1f} core-ms each")
            figures[f"{file_format} {cores}"] = {"images_per_s": rates[cores], "core_ms": each, "bytes": found[0][2]}
        ratio = rates[options.cores[-1]] / rates[options.cores[0]]
        hold = longest_hold(file_format)
        print(
            f"{file_format}: {ratio:.2f} times on {options.cores[-1]}, {found[0][2] / count / 1e6:.3f} MB each, ",
            end="",
        )
        print(f"the lock held for {hold:.2f} ms at most")
        figures[file_format] = {"ratio": ratio, "longest_hold_ms": hold}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
