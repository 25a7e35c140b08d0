"""How far a latency is from what the machine could do: the roofline model, layer by layer.

A layer takes at least its multiply-adds at the machine's peak, and at least its bytes at the bandwidth of the memory
they fit in. The sum over the layers is the limit. It is a limit for engines that run layer after layer, each reading
its input once and writing its output once, with everything between the layers fused.

On a CPU both are measured, right before the benchmark: the peak by matrix products (in numpy, and as 1x1
convolutions in each engine, the best counts), the bandwidth by copies of growing size, so that what fits in a cache
is held to the cache's speed. On a GPU they come from its datasheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from espan_deploy.backends import Backend
from espan_deploy.backends.model import INT8, ModelFile
from espan_deploy.bench.costs import Costs, Layer
from espan_deploy.description import ModelDescription
from espan_deploy.timing import Clock

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}

PROBE_SECONDS = 0.4
"""Spent on each probe; the best run of it counts, since a peak is what was reached at all."""

GEMM_SIDE = 1024
COPY_SIZES = tuple(1 << shift for shift in (18, 20, 22, 24, 26, 28))
"""Bytes read and written by a copy: from 256 KiB, within a core's cache, to 256 MiB, beyond all."""

PROBE_CHANNELS, PROBE_LAYERS, PROBE_PIXELS = 512, 6, (48, 64)


@dataclass(frozen=True)
class Gpu:
    """A datasheet's peaks: dense, at boost clock. tflops: by precision. bandwidth_gbs: of the memory."""

    name: str
    tflops: Mapping[str, float]
    bandwidth_gbs: float
    source: str


GPUS = (
    Gpu("RTX A6000", {"fp32": 38.7, "fp16": 154.8, "bf16": 154.8}, 768.0, "NVIDIA GA102 whitepaper 2.1, appendix A"),
    Gpu("A40", {"fp32": 37.4, "fp16": 149.7, "bf16": 149.7}, 696.0, "NVIDIA A40 datasheet"),
    Gpu("RTX 3090", {"fp32": 35.6, "fp16": 142.3, "bf16": 71.2}, 936.0, "NVIDIA GA102 whitepaper 2.1, appendix A"),
    Gpu("RTX 4090", {"fp32": 82.6, "fp16": 330.3, "bf16": 165.2}, 1008.0, "NVIDIA Ada whitepaper 2.1, appendix A"),
    Gpu("L40S", {"fp32": 91.6, "fp16": 362.0, "bf16": 362.0}, 864.0, "NVIDIA L40S datasheet"),
    Gpu("A100 SXM4 40GB", {"fp32": 19.5, "fp16": 312.0, "bf16": 312.0}, 1555.0, "NVIDIA A100 datasheet"),
    Gpu("A100 SXM4 80GB", {"fp32": 19.5, "fp16": 312.0, "bf16": 312.0}, 2039.0, "NVIDIA A100 datasheet"),
    Gpu("H100 80GB HBM3", {"fp32": 66.9, "fp16": 989.4, "bf16": 989.4}, 3352.0, "NVIDIA H100 whitepaper, SXM5"),
    Gpu("H200", {"fp32": 67.0, "fp16": 989.5, "bf16": 989.5}, 4800.0, "NVIDIA H200 datasheet, SXM"),
    Gpu("T4", {"fp32": 8.1, "fp16": 65.0}, 320.0, "NVIDIA T4 datasheet"),
)
"""Half precision on tensor cores without sparsity, the faster of both accumulators."""


@dataclass(frozen=True)
class Peaks:
    """What a device can do.

    gflops: 1e9 floating-point operations a second, by precision (a multiply-add is two).
    bandwidths: (bytes, bytes/s): what a layer that moves so many bytes in total can count on, the sizes growing.
    """

    device: str
    basis: str
    gflops: Mapping[str, float]
    bandwidths: tuple[tuple[float, float], ...]
    probes: tuple[Mapping[str, Any], ...] = ()

    def bandwidth(self, moved: float) -> float:
        """Bytes a second for a layer that moves this many: that of the largest size not above it."""
        fitting = [speed for size, speed in self.bandwidths if size <= moved]
        return fitting[-1] if fitting else self.bandwidths[0][1]

    def best_of(self, other: Peaks) -> Peaks:
        """Of the same machine probed twice: whatever it reached once, it can do."""
        precisions = dict.fromkeys((*self.gflops, *other.gflops))
        gflops = {p: max(self.gflops.get(p, 0.0), other.gflops.get(p, 0.0)) for p in precisions}
        pairs = zip(self.bandwidths, other.bandwidths, strict=True)
        bandwidths = tuple((size, max(one, two)) for (size, one), (_, two) in pairs)
        return Peaks(self.device, self.basis, gflops, bandwidths, (*self.probes, *other.probes))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "device": self.device,
            "basis": self.basis,
            "gflops": dict(self.gflops),
            "bandwidths": [{"bytes": size, "gb_per_s": speed / 1e9} for size, speed in self.bandwidths],
            "probes": [dict(probe) for probe in self.probes],
        }


@dataclass(frozen=True)
class Limit:
    """The least time for one layer or a whole model. bound: what it is limited by, in most of its time."""

    ms: float
    compute_ms: float
    memory_ms: float
    bound: str


def layer_limit(layer: Layer, peaks: Peaks, precision: str, images: float = 1.0) -> Limit | None:
    """The least time for a layer on so many images; None where the device has no figure for the precision."""
    peak = peaks.gflops.get(precision)
    if peak is None:
        return None
    moved = layer_bytes(layer, precision, images)
    compute = 2 * layer.macs * images / (peak * 1e9) * 1e3
    memory = moved / peaks.bandwidth(moved) * 1e3
    return Limit(max(compute, memory), compute, memory, "compute" if compute >= memory else "memory")


def model_limit(costs: Costs, peaks: Peaks, precision: str, images: float = 1.0) -> Limit | None:
    """The least time for a model: the sum over its layers."""
    limits = [layer_limit(layer, peaks, precision, images) for layer in costs.layers]
    known = [limit for limit in limits if limit is not None]
    if not known or len(known) < len(limits):
        return None
    by_compute = sum(limit.ms for limit in known if limit.bound == "compute")
    total = sum(limit.ms for limit in known)
    return Limit(
        total,
        sum(limit.compute_ms for limit in known),
        sum(limit.memory_ms for limit in known),
        "compute" if 2 * by_compute >= total else "memory",
    )


def layer_bytes(layer: Layer, precision: str, images: float = 1.0) -> float:
    """Activations read and written, and weights once."""
    return ((layer.read + layer.written) * images + layer.weights) * BYTES.get(precision, 4)


def known_gpu(device: str) -> Peaks | None:
    """The datasheet's peaks of the GPU of this name."""
    for gpu in GPUS:
        if f" {gpu.name} " in f" {device.replace('(', ' ').replace('-', ' ')} ":
            gflops = {precision: 1e3 * value for precision, value in gpu.tflops.items()}
            return Peaks(device, f"datasheet: {gpu.source}", gflops, ((0.0, gpu.bandwidth_gbs * 1e9),))
    return None


def probe_cpu(
    device: str,
    engines: Sequence[tuple[Backend, str]],
    *,
    threads: int,
    clock: Clock = time.perf_counter,
    seconds: float = PROBE_SECONDS,
) -> Peaks:
    """Measure this machine: matrix products in numpy and in every engine and precision, and copies."""
    probes: list[dict[str, Any]] = []
    left, right = (np.random.default_rng(s).random((GEMM_SIDE, GEMM_SIDE), np.float32) for s in (0, 1))
    out = np.empty_like(left)
    best = best_seconds(lambda: np.matmul(left, right, out=out), clock, seconds)
    probes.append({"what": "matrix product, numpy", "precision": "fp32", "gflops": 2 * GEMM_SIDE**3 / best / 1e9})
    for backend, precision in engines:
        probes.append(_probe_engine(backend, precision, threads, clock, seconds))
    gflops: dict[str, float] = {}
    for probe in probes:
        gflops[probe["precision"]] = max(gflops.get(probe["precision"], 0.0), probe["gflops"])
    return Peaks(device, "measured", gflops, copy_bandwidths(threads, clock, seconds), tuple(probes))


def _probe_engine(backend: Backend, precision: str, threads: int, clock: Clock, seconds: float) -> dict[str, Any]:
    height, width = PROBE_PIXELS
    image = np.random.default_rng(2).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    with backend.open(_probe_model(precision == INT8), precision=precision, threads=threads) as runner:
        best = best_seconds(lambda: runner.infer(image), clock, seconds)
    flops = 2 * height * width * (PROBE_LAYERS * PROBE_CHANNELS**2 + 6 * PROBE_CHANNELS)
    return {"what": f"1x1 convolutions, {backend.name}", "precision": precision, "gflops": flops / best / 1e9}


def copy_bandwidths(threads: int, clock: Clock, seconds: float) -> tuple[tuple[float, float], ...]:
    """Bytes a second that all threads together read and write, by how many bytes they share."""
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for size in COPY_SIZES:
            share = max(1, size // 2 // threads)
            pairs = [(np.ones(share, np.uint8), np.empty(share, np.uint8)) for _ in range(threads)]
            repeats = max(1, COPY_SIZES[-1] // 16 // size)  # small copies would time the thread pool

            def copy(pair: tuple[Any, Any], repeats: int = repeats) -> None:
                for _ in range(repeats):
                    np.copyto(pair[1], pair[0])

            best = best_seconds(lambda p=pairs, c=copy: list(pool.map(c, p)), clock, seconds / len(COPY_SIZES))  # type: ignore[misc]
            found.append((float(size), 2 * share * threads * repeats / best))
    return tuple(found)


def best_seconds(work: Callable[[], Any], clock: Clock, seconds: float) -> float:
    """The fastest of as many runs as fit, after one that does not count, and at least three."""
    work()
    begun = clock()
    times: list[float] = []
    while len(times) < 3 or clock() - begun < seconds:
        started = clock()
        work()
        times.append(clock() - started)
    return min(times)


def _probe_model(quantised: bool) -> ModelFile:
    """1x1 convolutions of many channels: nothing but matrix products; in floats, or in INT8."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    widths = [3, *[PROBE_CHANNELS] * (PROBE_LAYERS + 1), 3]
    nodes, weights, value = [], [], "input"
    for index, (before, after) in enumerate(pairwise(widths)):
        # Of this size the values neither grow nor shrink to where arithmetic is slow.
        weight = rng.normal(0, (2 / before) ** 0.5, (after, before, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        last = index == len(widths) - 2
        factors = [value, f"w{index}"]
        if quantised:
            # Of values: bytes up to some, without a zero point behind a ReLU. Of weights: four deviations.
            scales = (np.float32(4 / 255), np.uint8(0)), (np.float32(4 * (2 / before) ** 0.5 / 127), np.int8(0))
            for position, (scale, zero) in enumerate(scales):
                name = f"{factors[position]}.codes"
                shared = [f"{name}.scale", f"{name}.zero"]
                weights += [
                    numpy_helper.from_array(np.asarray(x), n) for x, n in zip((scale, zero), shared, strict=True)
                ]
                nodes.append(helper.make_node("QuantizeLinear", [factors[position], *shared], [name]))
                factors[position] = f"{name}.read"
                nodes.append(helper.make_node("DequantizeLinear", [name, *shared], [factors[position]]))
        nodes.append(helper.make_node("Conv", factors, ["output" if last else f"c{index}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        value = f"r{index}"
    sides: list[str | int | None] = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, sides)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ModelFile(
        Path("probe.onnx"),
        model.SerializeToString(),
        ModelDescription("probe", "probe", 1, 0, precision=INT8 if quantised else "fp32"),
    )
