"""What INT8 loses and gains: Y-PSNR through `upscale`'s own PNGs, and time, for FP32 files with INT8 beside them.

python benchmarks/int8.py SETS MODEL.onnx... [--seconds 6]

SETS: a folder with Set5 and Set14, each with LR and HR. Beside MODEL.onnx lies MODEL_int8.onnx, made of it. OpenVINO
runs both on each set's pictures by the command itself; the times are of one 256x256 picture, in turns, with bfloat16
where the processor has it. "In float" are the convolutions that stayed so, and their share of all weights.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from espan_deploy import backends
from espan_deploy.backends.model import INT8_SUFFIX, read_model
from espan_deploy.backends.openvino import preferred_precision
from espan_deploy.bench.quality import luma, psnr

SIDE, BORDER = 256, 4

PRECISIONS = ("fp32", "bf16", "int8")


def main() -> None:
    """Print a row for every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing, for each model")
    options = parser.parse_args()
    print("| model | Set5 FP32, INT8 | Set14 FP32, INT8 | in float | ms FP32, bf16, INT8 | times FP32 | times bf16 |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for model in options.models:
        cells = []
        for group in ("Set5", "Set14"):
            exact, coded = (y_psnr_db(options.sets / group, model, precision) for precision in ("fp32", "int8"))
            cells.append(f"{exact:.3f}, {coded:.3f} ({coded - exact:+.3f})")
        cells.append(in_float(model.with_name(model.stem + INT8_SUFFIX)))
        taken = times_ms(model, options.seconds)
        cells.append(", ".join(f"{taken[precision]:.1f}" if precision in taken else "" for precision in PRECISIONS))
        cells += [f"{taken[other] / taken['int8']:.2f}" if other in taken else "" for other in PRECISIONS[:2]]
        print("|", " | ".join([model.stem, *cells]), "|", flush=True)


def y_psnr_db(group: Path, model: Path, precision: str) -> float:
    """Mean of a set, through the command's PNGs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve().parent.parent / "cli.py")]
        where = [str(group / "LR"), folder, "--model", str(model), "--engine", "openvino", "--precision", precision]
        subprocess.run([*command, "upscale", *where, "--format", "png"], check=True, capture_output=True)
        results = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(Path(folder).glob("*.png"))]
    truths = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((group / "HR").iterdir())]
    found = []
    for result, truth in zip(results, truths, strict=True):
        rows, columns = (min(a, b) for a, b in zip(result.shape[:2], truth.shape[:2], strict=True))
        inner = (slice(BORDER, rows - BORDER), slice(BORDER, columns - BORDER))
        found.append(psnr(*(luma(each[inner].astype(np.float64)) for each in (result, truth))))
    return statistics.mean(found)


def in_float(model: Path) -> str:
    """How many convolutions of an INT8 file have float weights, and the share of all weights that they have."""
    graph = onnx.load(model).graph
    constants = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    dequantised = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    coded = {node.output[0]: constants[node.input[0]] for node in dequantised}
    read = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    floats = [constants.get(name, 0) for name in read if name not in coded]
    total = sum(floats) + sum(coded[name] for name in read if name in coded)
    return f"{len(floats)} of {len(read)}, {sum(floats) / total:.0%}"


def times_ms(model: Path, seconds: float) -> dict[str, float]:
    """Medians by precision, in turns; of those that the processor computes in."""
    engine, file = backends.get("openvino"), read_model(model)
    image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    runners = {"fp32": engine.open(file, precision="fp32"), "int8": engine.open(file, precision="int8")}
    if preferred_precision() == "bf16":
        runners["bf16"] = engine.open(file, precision="bf16")
    taken: dict[str, list[float]] = {precision: [] for precision in runners}
    for runner in runners.values():
        for _ in range(3):
            runner.infer(image)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for precision, runner in runners.items():
            start = time.perf_counter()
            runner.infer(image)
            taken[precision].append((time.perf_counter() - start) * 1e3)
    return {precision: statistics.median(each) for precision, each in taken.items()}


if __name__ == "__main__":
    main()
