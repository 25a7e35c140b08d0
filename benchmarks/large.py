"""Measure a large image against small ones, whole processes in turn: pixels per second, and peak memory.

python benchmarks/large.py --model espan.onnx [--photo LARGE] [--format png --format jpeg] [--rounds 3]

In each round: a folder of sixty 512x512 images, one such image alone, and a 6000x4000 image in each format. The rates
are input pixels over the whole process's seconds, start-up included; their ratio is taken within a round. Peak memory
is the process's largest resident set; beside it stands what the upscaled image's own bytes are. Without --photo, the
large image is made up; the small ones are cut from it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from espan_deploy.backends.probe import made_up_photograph  # noqa: E402

SIZE, SMALL, COUNT, SCALE = (6000, 4000), 512, 60, 4


def make_images(folder: Path, photo: Path | None) -> None:
    """The large image, the small ones in a folder, and the first of them alone in another."""
    if photo is not None:
        large = Image.open(photo).convert("RGB")
    else:
        large = Image.fromarray(np.tile(made_up_photograph(1000, 1), (4, 6, 1)))
    for name in ("large", "folder", "single"):
        (folder / name).mkdir()
    large.save(folder / "large" / "large.png")
    for index in range(COUNT):
        x, y = (index * 397 % (side - SMALL) for side in large.size)
        small = large.crop((x, y, x + SMALL, y + SMALL))
        small.save(folder / "folder" / f"{index:02}.png")
        if index == 0:
            small.save(folder / "single" / "00.png")


def measured(source: Path, output: Path, model: Path, arguments: list[str]) -> dict[str, float]:
    """A whole process's seconds, input pixels per second and peak bytes."""
    pixels = 0
    for path in source.iterdir():
        with Image.open(path) as image:
            pixels += image.width * image.height
    command = [sys.executable, "cli.py", "upscale", str(source), str(output), "--model", str(model), *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    kibibyte = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "pixels_per_second": pixels / seconds, "peak_bytes": usage.ru_maxrss * kibibyte}


def main() -> None:
    """Measure, round after round, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="ONNX file")
    parser.add_argument("--photo", type=Path, help="a large photograph; one is made up if left out")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--format", action="append", help="of the large result, may be repeated; png if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    engine = ["--engine", "openvino", "--precision", options.precision, "--threads", str(options.threads)]
    cases = [("folder", "png"), ("single", "png"), *(("large", name) for name in options.format or ["png"])]

    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        make_images(work, options.photo)
        with Image.open(work / "large" / "large.png") as image:
            own_bytes = image.width * image.height * SCALE**2 * 3
        for index in range(options.rounds):
            found = {}
            for name, file_format in cases:
                with tempfile.TemporaryDirectory(dir=work) as output:
                    arguments = [*engine, "--format", file_format]
                    found[f"{name} {file_format}"] = measured(
                        work / name, Path(output) / "out", options.model.resolve(), arguments
                    )
            rounds.append(found)
            print(
                f"round {index + 1}: "
                + ", ".join(
                    f"{name} {figures['seconds']:.2f} s, {figures['peak_bytes'] / 1e9:.2f} GB"
                    for name, figures in found.items()
                ),
                flush=True,
            )

    print(f"the large result's own bytes: {own_bytes / 1e9:.2f} GB")
    for name, file_format in cases[2:]:
        case = f"{name} {file_format}"
        peak = max(found[case]["peak_bytes"] for found in rounds)
        print(f"{case}: peak {peak / 1e9:.2f} GB, {(peak - own_bytes) / 1e9:+.2f} GB beside its own bytes")
        for other in ("folder png", "single png"):
            ratios = [found[case]["pixels_per_second"] / found[other]["pixels_per_second"] for found in rounds]
            print(
                f"  {statistics.median(ratios):.3f} of the per-pixel rate of {other} "
                f"({min(ratios):.3f} to {max(ratios):.3f})"
            )
    if options.json:
        options.json.write_text(json.dumps({"own_bytes": own_bytes, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
