"""Measure films against the way people upscale them today, and against their own slowest stage, in one interleaved run.

python benchmarks/film.py --model espan.onnx --checkpoint espan.pth [--precision P ...] [--rounds 3]

A film of 480x270 and 300 frames (--frames) becomes 1080p H.264. Whole processes are timed, in turn: the way of today
(ffmpeg decodes to PNG files, a PyTorch script upscales them, ffmpeg encodes), our own command, and each stage alone:
decoding, inference on all the threads, encoding. Ratios are taken within each round. Needs ffmpeg on the path; without
--checkpoint, the way of today is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

HEIGHT, WIDTH, RATE = 270, 480, 30
CRF = "18"
STAGES = ("decode", "infer", "encode")


def make_film(path: Path, frames: int) -> None:
    """A slow pan over photographs, so that every frame is a new one."""
    import av

    files = sorted((ROOT / "docs/photos").glob("*.png"))
    photos = [Image.open(file).convert("RGB").resize((960, 540)) for file in files]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=RATE, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            photo = photos[index * len(photos) // frames]
            left, top = 1.5 * (index % 100), 0.9 * (index % 100)
            frame = photo.transform(
                (WIDTH, HEIGHT), Image.Transform.AFFINE, (1, 0, left, 0, 1, top), Image.Resampling.BICUBIC
            )
            out.mux(stream.encode(av.VideoFrame.from_image(frame)))
        out.mux(stream.encode(None))


def run_stage(name: str, film: Path, prepared: Path, options: argparse.Namespace) -> None:
    """One stage alone, in this process, with the package's own code for it."""
    from espan_deploy import backends
    from espan_deploy.backends.model import read_model
    from espan_deploy.pipeline.engine import EngineSettings, OpenEngine
    from espan_deploy.video.codecs import Encoding, SegmentEncoder, codec_named
    from espan_deploy.video.film import read_film
    from espan_deploy.video.frames import FrameReader
    from espan_deploy.video.segments import SegmentWriter

    facts = read_film(film)
    if name == "decode":
        assert sum(1 for _ in FrameReader(facts, threads=options.threads)) == options.frames
        return
    if name == "encode":
        results = np.load(prepared, mmap_mode="r")
        encoding = Encoding(
            codec_named("h264", facts), facts, results.shape[1], results.shape[2], int(CRF), threads=options.threads
        )
        with tempfile.TemporaryFile() as file:
            encoder = SegmentEncoder(encoding, SegmentWriter(file))
            for index in range(options.frames):
                encoder.add(np.array(results[index % len(results)]), pts=index * 512, duration=512)
            encoder.finish()
        return
    from concurrent.futures import ThreadPoolExecutor

    model = read_model(options.model)
    settings = EngineSettings(engine="openvino", precision=options.precision[0], threads=options.threads)
    frames = [frame.pixels for frame in FrameReader(facts) if frame.pixels is not None]
    with OpenEngine(model, backends.choose("openvino", model), settings, at_once=None) as engine:
        waiting = list(engine.runners)

        def infer(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            runner = waiting.pop()
            try:
                return runner.infer(pixels[None])[0]
            finally:
                waiting.append(runner)

        with ThreadPoolExecutor(len(engine.runners)) as pool:
            if name == "prepare":
                np.save(prepared, np.stack(list(pool.map(infer, frames[::6]))))
            else:
                for _ in pool.map(infer, frames):
                    pass


def timed(*command: object) -> float:
    """Seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run([*map(str, command)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def way_of_today(film: Path, checkpoint: Path) -> float:
    """Three programs, and files between them."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        small.mkdir()
        seconds = timed("ffmpeg", "-y", "-i", film, small / "%05d.png")
        seconds += timed(sys.executable, "benchmarks/sequential.py", small, large, checkpoint)
        encode = ("-c:v", "libx264", "-crf", CRF, "-pix_fmt", "yuv420p")
        return seconds + timed(
            "ffmpeg", "-y", "-framerate", RATE, "-i", large / "%05d.png", *encode, Path(folder, "o.mp4")
        )


def one_round(film: Path, prepared: Path, options: argparse.Namespace) -> dict[str, float]:
    """Every contender's seconds."""
    found = {} if options.checkpoint is None else {"way of today": way_of_today(film, options.checkpoint)}
    for precision in options.precision:
        engine = ("--model", options.model, "--threads", options.threads, "--precision", precision)
        with tempfile.TemporaryDirectory() as folder:
            choices = ("--engine", "openvino", "--video-codec", "h264", "--crf", CRF)
            found[f"film {precision}"] = timed(sys.executable, "cli.py", "upscale", film, folder, *engine, *choices)
        for stage in STAGES:
            found[f"{stage} {precision}"] = timed(
                sys.executable,
                __file__,
                *engine,
                "--frames",
                options.frames,
                "--stage",
                stage,
                "--film",
                film,
                "--prepared",
                prepared,
            )
    return found


def main() -> None:
    """Measure, round after round, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="ONNX file")
    parser.add_argument("--checkpoint", type=Path, help="the same network for PyTorch")
    parser.add_argument("--precision", action="append", choices=["auto", "bf16", "fp32"], help="may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    for name in ("stage", "film", "prepared"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = options.precision or ["auto"]
    options.model, options.checkpoint = options.model.resolve(), options.checkpoint and options.checkpoint.resolve()
    if options.stage:
        run_stage(options.stage, Path(options.film), Path(options.prepared), options)
        return
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        film, prepared = Path(scratch, "film.mp4"), Path(scratch, "prepared.npy")
        make_film(film, options.frames)
        run_stage("prepare", film, prepared, options)
        for index in range(options.rounds):
            rounds.append(one_round(film, prepared, options))
            print(f"round {index + 1}: " + ", ".join(f"{n} {s:.2f} s" for n, s in rounds[-1].items()), flush=True)
    figures: dict[str, list[float]] = {}
    for precision in options.precision:
        for found in rounds:
            whole = found[f"film {precision}"]
            slowest = max(found[f"{stage} {precision}"] for stage in STAGES)
            figures.setdefault(f"{precision}: of the slowest stage alone", []).append(slowest / whole)
            if "way of today" in found:
                figures.setdefault(f"{precision}: times the way of today", []).append(found["way of today"] / whole)
    for name, values in figures.items():
        print(f"{name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
