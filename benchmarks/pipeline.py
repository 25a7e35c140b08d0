"""Measure the pipeline against the sequential way and against its own slowest stage, in one interleaved run.

python benchmarks/pipeline.py --model espan.onnx --checkpoint espan.pth [--photos DIR] [--rounds 3]

Whole processes are timed, start-up included, in turn: sequential, bf16, its inference alone, fp32, its inference
alone, decoding alone, encoding alone, and again. A ratio is taken within each round, so that a machine that slows down
slows both sides. The share of the slowest stage is its process's time over the pipeline's. How long the pipeline takes
for one image of 8x8 pixels tells its start-up. Without --photos, 60 are made up; without --checkpoint, the sequential
way is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from espan_deploy.backends.probe import made_up_photograph  # noqa: E402

SIZES = ((510, 340), (340, 510))


def make_photos(folder: Path, count: int) -> None:
    """Write so many made-up photographs."""
    base = Image.fromarray(made_up_photograph(640, 1))
    for index in range(count):
        width, height = SIZES[0] if index % 5 else SIZES[1]
        base.rotate(index * 6).crop((60, 60, 60 + width, 60 + height)).save(folder / f"{index:03}.jpg", quality=92)


def timed(*command: object) -> float:
    """Seconds of a whole Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


class Contenders:
    """The processes to time. scratch: a folder for what they write."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.model, self.checkpoint = options.model.resolve(), options.checkpoint and options.checkpoint.resolve()
        self.engine = ("--model", self.model, "--threads", options.threads)
        self.scratch, self.prepared, self.tiny = scratch, scratch / "prepared", scratch / "tiny"
        self.photos = (options.photos or scratch / "photos").resolve()
        if options.photos is None:
            self.photos.mkdir()
            make_photos(self.photos, 60)
        self.tiny.mkdir()
        Image.new("RGB", (8, 8)).save(self.tiny / "tiny.png")
        self.stage("prepare")

    def sequential(self) -> float:
        """Read, PyTorch, save, one image after another."""
        with self.output() as output:
            return timed("benchmarks/sequential.py", self.photos, output, self.checkpoint)

    def pipeline(self, precision: str, photos: Path | None = None) -> float:
        """Our own command."""
        choices = ("--engine", "openvino", "--precision", precision, "--format", "png")
        with self.output() as output:
            return timed("cli.py", "upscale", photos or self.photos, output, *self.engine, *choices)

    def stage(self, name: str, precision: str = "fp32") -> float:
        """One stage alone."""
        return timed("benchmarks/stage.py", name, self.photos, self.prepared, *self.engine, "--precision", precision)

    @contextmanager
    def output(self) -> Iterator[Path]:
        """A folder to write to. It is gone before the next contender starts, so that all find as much free memory."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            yield Path(folder, "output")

    def one_round(self, precisions: list[str]) -> dict[str, float]:
        """Every contender's seconds."""
        seconds = {} if self.checkpoint is None else {"sequential": self.sequential()}
        for precision in precisions:
            seconds[f"pipeline {precision}"] = self.pipeline(precision)
            seconds[f"infer {precision}"] = self.stage("infer", precision)
            seconds[f"start-up {precision}"] = self.pipeline(precision, self.tiny)
        return seconds | {stage: self.stage(stage) for stage in ("decode", "encode")}


def ratios(rounds: list[dict[str, float]], precision: str) -> dict[str, list[float]]:
    """The pipeline's figures in each round."""
    found: dict[str, list[float]] = {"times the sequential way": [], "of the slowest stage alone": []}
    for seconds in rounds:
        whole = seconds[f"pipeline {precision}"]
        if "sequential" in seconds:
            found["times the sequential way"].append(seconds["sequential"] / whole)
        slowest = max(seconds[stage] for stage in (f"infer {precision}", "decode", "encode"))
        found["of the slowest stage alone"].append(slowest / whole)
    return {name: values for name, values in found.items() if values}


def main() -> None:
    """Measure, round after round, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="ONNX file")
    parser.add_argument("--checkpoint", type=Path, help="the same network for PyTorch")
    parser.add_argument("--photos", type=Path, help="folder of photographs; 60 are made up if left out")
    parser.add_argument(
        "--precision", action="append", choices=["bf16", "fp32"], help="may be repeated; both if left out"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    precisions = options.precision or ["bf16", "fp32"]

    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        contenders = Contenders(options, Path(scratch))
        for index in range(options.rounds):
            rounds.append(contenders.one_round(precisions))
            print(f"round {index + 1}: " + ", ".join(f"{n} {s:.2f} s" for n, s in rounds[-1].items()), flush=True)

    figures = {precision: ratios(rounds, precision) for precision in precisions}
    for precision, found in figures.items():
        for name, values in found.items():
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"{precision}: {middle:.3f} {name} ({low:.3f} to {high:.3f})")
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
