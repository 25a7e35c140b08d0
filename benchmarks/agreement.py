"""Does `bench` measure what an independent timer measures? One interleaved run for every CPU engine and precision.

python benchmarks/agreement.py --model espan.onnx [--runs 60]

The benchmark's own loop times two contenders in turn, on one runner: the call itself, and the call inside Python's
``timeit``, whose figure is kept. The median of the latter should lie within the interval reported for the former. Where
the interval covers 95 %, one in twenty lies outside by chance.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import timeit
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from espan_deploy.backends.base import Runner
from espan_deploy.backends.model import read_model
from espan_deploy.bench.contenders import engine_choices
from espan_deploy.bench.statistics import summarise
from espan_deploy.timing import Stop, measure


def main() -> None:
    """Print a row for every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="ONNX file")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--side", type=int, default=256)
    options = parser.parse_args()

    model = read_model(options.model)
    image = np.random.default_rng(0).integers(60, 190, (1, options.side, options.side, 3), dtype=np.uint8)
    print("| engine | `bench` p50 ms | 95 % interval | `timeit` p50 ms | within |\n|---|---|---|---|---|")
    for choice in engine_choices(["all"]):
        with choice.backend.open(model, precision=choice.precision) as runner:
            independent: list[float] = []
            timer = timeit.Timer("runner.infer(image)", globals={"runner": runner, "image": image})

            def timed(pixels: np.ndarray, timer: timeit.Timer = timer, kept: list[float] = independent) -> None:
                kept.append(1e3 * timer.timeit(1))

            def plain(pixels: np.ndarray, runner: Runner = runner) -> None:
                runner.infer(pixels)

            measured = measure({"bench": plain, "timeit": timed}, [image], Stop(options.runs, float("inf")))
            ours = summarise(measured.series["bench"].latencies_ms)
            theirs = statistics.median(independent[-measured.rounds :])
            low, high = ours.ci95
            cells = [f"{choice.backend.title} {choice.precision}", f"{ours.p50:.2f}", f"{low:.2f} to {high:.2f}"]
            print("|", " | ".join([*cells, f"{theirs:.2f}", "yes" if low <= theirs <= high else "no"]), "|")


if __name__ == "__main__":
    main()
