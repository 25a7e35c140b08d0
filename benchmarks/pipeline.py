"""Measure the pipeline against the sequential way and against its own slowest stage, in one interleaved run.

python benchmarks/pipeline.py --model espan.onnx --checkpoint espan.pth [--photos DIR] [--rounds 3]

Whole processes are timed, start-up included, in turn: sequential, bf16, fp32, sequential, bf16, ... A ratio is taken
within each round, so that a machine that slows down slows all three. The stages are timed alone within one process;
since a process of one stage would have to start as well, the share of the slowest one is given with and without the
start-up, which is what the same command takes for one tiny image. Without --photos, 60 are made up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from espan_deploy import backends  # noqa: E402
from espan_deploy.backends.model import read_model  # noqa: E402
from espan_deploy.backends.probe import made_up_photograph  # noqa: E402
from espan_deploy.pipeline.decode import decode  # noqa: E402
from espan_deploy.pipeline.encode import FORMATS, EncodeSettings, open_sink  # noqa: E402

SIZES = ((510, 340), (340, 510))


def make_photos(folder: Path, count: int) -> None:
    """Write so many made-up photographs."""
    base = Image.fromarray(made_up_photograph(640, 1))
    for index in range(count):
        width, height = SIZES[0] if index % 5 else SIZES[1]
        base.rotate(index * 6).crop((60, 60, 60 + width, 60 + height)).save(folder / f"{index:03}.jpg", quality=92)


def timed(command: list[str]) -> float:
    """Seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def in_threads(count: int, items: list[int], work: Callable[[int, int], object]) -> float:
    """Seconds for all items over so many threads."""
    queue = list(items)
    lock = threading.Lock()

    def loop(thread: int) -> None:
        while True:
            with lock:
                if not queue:
                    return
                item = queue.pop()
            work(thread, item)

    threads = [threading.Thread(target=loop, args=(index,)) for index in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def stage_rates(photos: list[Path], model: Path, precision: str, threads: int) -> dict[str, float]:
    """Images per second of each stage alone, with all the threads."""
    data = [path.read_bytes() for path in photos]
    pictures = [decode(item) for item in data]
    runners = backends.get("openvino").open_runners(
        read_model(model), precision=precision, threads=threads, lanes=threads
    )
    results = [runners[0].infer(np.ascontiguousarray(picture.color)[None])[0] for picture in pictures[:4]]
    for runner in runners:
        runner.infer(np.ascontiguousarray(pictures[0].color)[None])

    def infer(thread: int, index: int) -> None:
        runners[thread].infer(np.ascontiguousarray(pictures[index].color)[None])

    def encode(_thread: int, index: int) -> None:
        with tempfile.TemporaryFile() as file:
            sink = open_sink(file, FORMATS["png"], EncodeSettings(), pictures[index % len(results)], 4, deep=False)
            sink.commit(sink.prepare(results[index % len(results)]), last=True)
            sink.finish()

    items = list(range(len(photos)))
    stages: dict[str, Callable[[int, int], object]] = {
        "decode": lambda _, index: decode(data[index]),
        "infer": infer,
        "encode": encode,
    }
    return {name: len(items) / in_threads(threads, items, work) for name, work in stages.items()}


def main() -> None:
    """Measure, round after round, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="ONNX file")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the same network for PyTorch")
    parser.add_argument("--photos", type=Path, help="folder of photographs; 60 are made up if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        photos = options.photos
        if photos is None:
            photos = work / "photos"
            photos.mkdir()
            make_photos(photos, 60)
        count = len(list(photos.iterdir()))

        tiny = work / "tiny"
        tiny.mkdir()
        Image.new("RGB", (8, 8)).save(tiny / "tiny.png")

        def pipeline(precision: str, photos: Path = photos) -> float:
            output = work / f"{precision}-{time.monotonic_ns()}"
            command = [sys.executable, "cli.py", "upscale", str(photos.resolve()), str(output)]
            command += ["--model", str(options.model.resolve()), "--precision", precision, "--format", "png"]
            return timed([*command, "--engine", "openvino", "--threads", str(options.threads)])

        def sequential() -> float:
            output = work / f"sequential-{time.monotonic_ns()}"
            script = str(ROOT / "benchmarks" / "sequential.py")
            checkpoint = str(options.checkpoint.resolve())
            return timed([sys.executable, script, str(photos.resolve()), str(output), checkpoint])

        rounds = []
        for index in range(options.rounds):
            seconds = {"sequential": sequential(), "bf16": pipeline("bf16"), "fp32": pipeline("fp32")}
            stages = {
                precision: stage_rates(sorted(photos.iterdir()), options.model, precision, options.threads)
                for precision in ("bf16", "fp32")
            }
            startup = {precision: pipeline(precision, tiny) for precision in ("bf16", "fp32")}
            rounds.append({"seconds": seconds, "stages": stages, "startup": startup})
            rates = ", ".join(f"{name} {count / value:.2f}/s" for name, value in seconds.items())
            print(f"round {index + 1}: {rates}", flush=True)

        figures: dict[str, float] = {}
        for precision in ("bf16", "fp32"):
            speedups = [item["seconds"]["sequential"] / item["seconds"][precision] for item in rounds]
            alone = [count / min(item["stages"][precision].values()) for item in rounds]
            limits = [least / item["seconds"][precision] for least, item in zip(alone, rounds, strict=True)]
            running = [
                least / (item["seconds"][precision] - item["startup"][precision])
                for least, item in zip(alone, rounds, strict=True)
            ]
            figures[f"{precision}_startup_seconds"] = statistics.median(item["startup"][precision] for item in rounds)
            figures[f"{precision}_of_slowest_stage_once_started"] = statistics.median(running)
            figures[f"{precision}_times_sequential"] = statistics.median(speedups)
            figures[f"{precision}_of_slowest_stage"] = statistics.median(limits)
            stages = rounds[-1]["stages"][precision]
            print(
                f"{precision}: {figures[f'{precision}_times_sequential']:.2f} times the sequential way "
                f"({min(speedups):.2f} to {max(speedups):.2f}), "
                f"{figures[f'{precision}_of_slowest_stage']:.1%} of the slowest stage alone, "
                f"{figures[f'{precision}_of_slowest_stage_once_started']:.1%} once started "
                f"({figures[f'{precision}_startup_seconds']:.2f} s) ("
                + ", ".join(f"{name} {rate:.1f}/s" for name, rate in stages.items())
                + ")"
            )
        if options.json:
            document = {"images": count, "rounds": rounds, "medians": figures}
            options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
