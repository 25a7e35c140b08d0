"""One stage of the pipeline alone, as a process of its own: what the whole pipeline is measured against.

python benchmarks/stage.py prepare|decode|infer|encode PHOTOS PREPARED --model espan.onnx [--precision P] [--threads N]

``prepare`` decodes and upscales the photographs once, so that the other stages find what they start from: ``decode``
reads and decodes the files, ``infer`` runs decoded pictures through the engine, ``encode`` writes upscaled ones as PNG
files, synced. Each does so with all the threads, and with the package's own code for that stage.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from espan_deploy.backends.base import Runner


def in_threads(count: int, folder: Path, work: Callable[[Path], object]) -> None:
    """Do all of a folder's files, over so many threads. Raises what the work raises."""
    with ThreadPoolExecutor(count) as pool:
        for _ in pool.map(work, sorted(folder.iterdir())):
            pass


def decode(photos: Path, threads: int) -> None:
    """Read and decode."""
    from espan_deploy.pipeline.decode import decode as decode_image

    in_threads(threads, photos, lambda path: bool(decode_image(path.read_bytes())))  # no picture is kept


def infer(inputs: Path, outputs: Path | None, model: Path, precision: str, threads: int) -> None:
    """Upscale decoded pictures; outputs: where to keep the results, if anywhere."""
    from espan_deploy import backends
    from espan_deploy.backends.model import read_model

    runners = backends.get("openvino").open_runners(
        read_model(model), precision=precision, threads=threads, lanes=threads
    )

    idle: SimpleQueue[Runner] = SimpleQueue()
    for runner in runners:
        idle.put(runner)

    def work(path: Path) -> None:
        runner = idle.get()
        result = runner.infer(np.load(path)[None])[0]
        idle.put(runner)
        if outputs is not None:
            np.save(outputs / path.name, result)

    in_threads(threads, inputs, work)


def encode(outputs: Path, threads: int) -> None:
    """Write upscaled pictures as PNG files."""
    from espan_deploy.pipeline.encode import FORMATS, EncodeSettings, open_sink
    from espan_deploy.pipeline.picture import Picture

    def work(path: Path) -> None:
        pixels = np.load(path)
        picture = Picture(pixels[::4, ::4], None, 8, "JPEG")
        with tempfile.TemporaryFile(dir=outputs.parent) as file:
            sink = open_sink(file, FORMATS["png"], EncodeSettings(), picture, 4, deep=False)
            for part in sink.parts(pixels):
                sink.commit(part)
            sink.finish()
            file.flush()
            os.fsync(file.fileno())

    in_threads(threads, outputs, work)


def prepare(photos: Path, prepared: Path, model: Path, threads: int) -> None:
    """Decoded pictures in ``prepared/inputs``, upscaled ones in ``prepared/outputs``."""
    from espan_deploy.pipeline.decode import decode as decode_image

    inputs, outputs = prepared / "inputs", prepared / "outputs"
    for folder in (inputs, outputs):
        folder.mkdir(parents=True)
    for path in sorted(photos.iterdir()):
        np.save(inputs / f"{path.stem}.npy", np.ascontiguousarray(decode_image(path.read_bytes()).color))
    infer(inputs, outputs, model, "fp32", threads)


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["prepare", "decode", "infer", "encode"])
    parser.add_argument("photos", type=Path)
    parser.add_argument("prepared", type=Path, help="folder that prepare makes")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.stage == "prepare":
        prepare(options.photos, options.prepared, options.model, options.threads)
    elif options.stage == "decode":
        decode(options.photos, options.threads)
    elif options.stage == "infer":
        infer(options.prepared / "inputs", None, options.model, options.precision, options.threads)
    else:
        encode(options.prepared / "outputs", options.threads)


if __name__ == "__main__":
    main()
