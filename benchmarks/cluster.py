"""What a cluster costs beside one process, on this machine, 127.0.0.1 only.

python benchmarks/cluster.py overhead [--photos DIR] [--count 300] [--side 160] [--rounds 1] [--model FILE]
python benchmarks/cluster.py keys [--count 200000]
python benchmarks/cluster.py packing [--photos DIR]

``overhead``: `upscale` on a folder of small photographs, plain and with --cluster auto --actors 1 in turns, start-up
aside; with the package's own model, or another; and how long each takes to start.
``keys``: the driver's time for each file: listed, named, weighed, handed out and its row taken, with workers that do
nothing. Once through memory and pickles alone, once through Ray, with two actors.
``packing``: how unequal chunks are that were packed by count, by bytes or by pixels, and what weighing takes.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from espan_deploy.backends.model import read_model  # noqa: E402
from espan_deploy.backends.probe import made_up_photograph  # noqa: E402
from espan_deploy.cluster.actors import ActorWorker, RayActors, Resources, connected  # noqa: E402
from espan_deploy.cluster.foreman import Actors, Answer, Foreman  # noqa: E402
from espan_deploy.cluster.ledger import Ledger  # noqa: E402
from espan_deploy.cluster.worker import Hello, Opened, Orders, Turn  # noqa: E402
from espan_deploy.models import default_model  # noqa: E402
from espan_deploy.pipeline.names import NamedFile, outputs  # noqa: E402
from espan_deploy.pipeline.opened import UpscaleSettings  # noqa: E402
from espan_deploy.pipeline.report import FileReport, Report  # noqa: E402
from espan_deploy.stores import Entry  # noqa: E402

BYTES = 120_000
"""Of a made-up entry."""

CHUNKS = (8, 32)


def make_photos(folder: Path, count: int, width: int) -> Path:
    """So many made-up photographs, two thirds as high as wide."""
    folder.mkdir()
    base = made_up_photograph(width, 1)[: width * 2 // 3]
    for index in range(count):
        Image.fromarray(np.roll(base, 3 * index, axis=1)).save(folder / f"{index:03}.jpg", quality=92)
    return folder


def report_of(photos: Path, output: Path, model: Path, *options: str) -> dict[str, Any]:
    """Of one process, with the whole time it took."""
    command = [sys.executable, str(ROOT / "cli.py"), "upscale", str(photos), str(output), "--model", str(model)]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--engine", "openvino", "--precision", "fp32", "--json", *options], capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    report: dict[str, Any] = json.loads(done.stdout)
    report["whole_seconds"] = time.perf_counter() - start
    return report


def overhead(options: argparse.Namespace) -> None:
    """Plain and by one actor, in turns."""
    kinds = {"plain": (), "one actor": ("--cluster", "auto", "--actors", "1")}
    seconds: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = options.photos or make_photos(folder / "photos", options.count, options.side)
        for number in range(options.rounds):
            for kind, extra in kinds.items():
                report = report_of(photos, folder / f"{kind} {number}", options.model, *extra)
                work = report["seconds"] - report["startup_seconds"]
                seconds[kind].append((work, report["startup_seconds"], report["whole_seconds"]))
                count = report["counts"]["done"]
                print(f"{kind}: {count} in {work:.2f} s, start {report['startup_seconds']:.2f} s", flush=True)
    middle = {kind: [statistics.median(column) for column in zip(*rows, strict=True)] for kind, rows in seconds.items()}
    ratio = middle["one actor"][0] / middle["plain"][0]
    print(f"after start-up: {ratio - 1:+.1%}; whole: {middle['one actor'][2] - middle['plain'][2]:+.2f} s")


def rows_of(files: tuple[NamedFile, ...]) -> Turn:
    """What a worker would answer that took no time."""
    stages = {"decode": 1.5, "infer": 20.25, "encode": 7.125, "end_to_end": 31.0625}
    return Turn(
        [
            (
                file.number,
                FileReport(file.entry.name, file.output, "done", width=481, height=321, tiles=1, stage_ms=dict(stages)),
            )
            for file in files
        ]
    )


HELLO = Hello("node", "machine", os.getpid(), 1)
OPENED = Opened({}, "settings", {"backend": "none"})


class IdleActors:
    """Workers that do nothing, at once; what is said goes through pickles both ways."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._answers: deque[Answer] = deque()

    def wanted(self) -> dict[str, int]:
        """All of them."""
        return {"node": self.count}

    def start(self, worker: str, node: str) -> None:
        """Nothing."""

    def call(self, worker: str, method: str, *arguments: object) -> None:
        """Answered at once."""
        sent: tuple[Any, ...] = pickle.loads(pickle.dumps(arguments))
        value: object = {"hello": HELLO, "open": OPENED, "close": None}.get(method)
        if method == "turn":
            value = pickle.loads(pickle.dumps(rows_of(sent[0])))
        self._answers.append(Answer(worker, value))

    def answers(self, seconds: float) -> list[Answer]:
        """All there are."""
        found, self._answers = list(self._answers), deque()
        return found

    def end(self, worker: str) -> None:
        """Nothing."""


class IdleWorker(ActorWorker):
    """An actor that does nothing."""

    def open(self, decided: object) -> Opened:
        """At once."""
        return OPENED

    def turn(self, files: tuple[NamedFile, ...], seconds: float, stop: bool = False) -> Turn:
        """At once."""
        return rows_of(files)


def keys(options: argparse.Namespace) -> None:
    """Both ways."""
    print(f"memory and pickles: {each(options.count, IdleActors(8)):.1f} us a file")
    model = read_model(default_model())
    orders = Orders("/", "/", "", {"clean": model}, "clean", UpscaleSettings(), None, None)
    with connected("auto"):
        actors = RayActors(orders, Resources(actors=2), IdleWorker)
        print(f"through Ray: {each(options.count, actors):.1f} us a file")


def each(count: int, actors: Actors) -> float:
    """Microseconds of the driver for each of so many files, from the first row on."""
    entries = (Entry(f"photographs/of/somewhere/{number:09}.jpg", BYTES, "e" * 64) for number in range(count))
    report = Report(engine={}, model={"scale": 4}, settings={})
    began: list[float] = []

    def on_row(number: int, row: FileReport) -> None:
        if not began:
            began.append(time.perf_counter())
        report.add(number, row)

    ledger = Ledger(outputs(entries, "same"), lambda entry: entry.size or 0)
    foreman = Foreman(ledger, actors, "bench", on_row=on_row, on_open=lambda _: None)
    foreman.execute()
    assert report.count("done") == count
    return (time.perf_counter() - began[0]) / count * 1e6


def mixture(photos: list[Path], folder: Path, count: int = 400) -> list[Path]:
    """Photographs as people have them: 0.05 to 3 megapixels, evenly in the logarithm, JPEG of quality 50 to 95, PNG."""
    rng, made = np.random.default_rng(3), []
    for number in range(count):
        with Image.open(photos[number % len(photos)]) as image:
            width = int(np.sqrt(np.exp(rng.uniform(np.log(5e4), np.log(3e6))) * image.width / image.height))
            large = image.convert("RGB").resize((width, width * image.height // image.width))
        path = folder / f"{rng.integers(1 << 30):010}{'.png' if number % 5 == 0 else '.jpg'}"
        large.save(path, quality=int(rng.integers(50, 96)))
        made.append(path)
    return sorted(made)


def packing(options: argparse.Namespace) -> None:
    """Chunks of a mixture of photographs, by what they were packed by."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        given = options.photos or ROOT / "docs" / "photos"
        found = [path for path in sorted(given.rglob("*")) if path.suffix in (".jpg", ".png")]
        files = mixture(found, folder)
        start = time.perf_counter()
        weights = np.array([path.stat().st_size for path in files], float)
        weighed = time.perf_counter()
        pixels = np.array([size_of(path) for path in files], float)
        looked = time.perf_counter()
    stat, header = (weighed - start) / len(files), (looked - weighed) / len(files)
    print(f"stat {stat * 1e6:.0f} us, header {header * 1e6:.0f} us each")
    print(f"correlation of bytes and pixels {np.corrcoef(weights, pixels)[0, 1]:.2f}")
    pngs = np.array([path.suffix == ".png" for path in files])
    per_byte = {kind: pixels[pngs == kind].sum() / weights[pngs == kind].sum() for kind in (True, False)}
    ways = {
        "count": np.ones(len(files)),
        "bytes": weights,
        "bytes, for each ending": weights * np.where(pngs, per_byte[True], per_byte[False]),
        "pixels": pixels,
    }
    print(f"pixels a byte: PNG {per_byte[True]:.2f}, JPEG {per_byte[False]:.2f}")
    for per_chunk in CHUNKS:
        for name, by in ways.items():
            sums = list(chunks(by, pixels, by.mean() * per_chunk))
            mean = statistics.mean(sums)
            spread, most = statistics.pstdev(sums) / mean, max(sums) / mean
            print(f"{per_chunk:3} a chunk by {name}: spread {spread:.2f}, most {most:.2f}")


def size_of(path: Path) -> int:
    """Pixels, from the header."""
    with Image.open(path) as image:
        return image.width * image.height


def chunks(by: np.ndarray, pixels: np.ndarray, weight: float) -> Iterator[float]:
    """Pixels of each chunk of so much weight."""
    total = held = 0.0
    for each_by, each_pixels in zip(by, pixels, strict=True):
        held, total = held + each_by, total + each_pixels
        if held >= weight:
            yield total
            total = held = 0.0


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "keys", "packing"])
    parser.add_argument("--photos", type=Path, help="folder of photographs; made up if left out")
    parser.add_argument("--count", type=int, default=0, help="of photographs (300) or of files (200,000)")
    parser.add_argument("--side", type=int, default=160, help="width of the photographs made up")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", type=Path, default=default_model())
    options = parser.parse_args()
    options.count = options.count or (300 if options.what == "overhead" else 200_000)
    {"overhead": overhead, "keys": keys, "packing": packing}[options.what](options)


if __name__ == "__main__":
    main()
