"""A selective scan as loops, as it is exported, beside the same in plain operators: time, memory, session.

python benchmarks/scans.py [--sides 64 128]

One thread of ONNX Runtime. Sizes are those of MambaIRv2's light network (a sequence of 48 channels, 8 values of state)
and of PFVM (four of 120, 16). Prints a row of docs/systems.md's table for each.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from espan_deploy.fold.evaluate import fold_constants  # noqa: E402
from espan_deploy.graph.lowering import lowered  # noqa: E402
from espan_deploy.networks.scans.blocks import selective_scan  # noqa: E402

NETWORKS = {"MambaIRv2": (1, 48, 8), "PFVM": (4, 120, 16)}
"""Sequences, channels of each, values of state for each channel."""

RUN, DOUBLINGS = 16, 16

RUNS = 7


class Loops(nn.Module):
    """The scan as it is exported."""

    def forward(self, x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor) -> Tensor:
        """As :func:`selective_scan` takes them."""
        return selective_scan(x, step, rate, write, read)


class PlainOperators(nn.Module):
    """The scan without a loop: runs of 16 pixels, 16 runs joined in turn, and what these make by doubling."""

    def forward(self, x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor) -> Tensor:
        """As :func:`selective_scan` takes them."""
        length = x.shape[3]
        stretches = (length + RUN * RUN - 1) // (RUN * RUN)
        padding = (0, stretches * RUN * RUN - length)
        steps, values, writes, reads = (_in_runs(F.pad(v, padding)) for v in (step, step * x, write, read))
        rate = rate.transpose(1, 2)[:, :, :, None, None]
        steps_first, values_first = steps.transpose(2, 3), values.transpose(2, 3)
        pixels = [
            (steps_first.narrow(2, i, 1), values_first.narrow(2, i, 1), writes.narrow(3, i, 1), reads.narrow(3, i, 1))
            for i in range(RUN)
        ]
        state = pixels[0][1] * pixels[0][2]
        for step_of, value, write_of, _ in pixels[1:]:
            state = torch.exp(step_of * rate) * state + value * write_of
        state = _states_before(torch.exp(steps.sum(3)[:, :, None] * rate), state)
        read_out = []
        for step_of, value, write_of, read_of in pixels:
            state = torch.exp(step_of * rate) * state + value * write_of
            read_out.append((state * read_of).sum(2, keepdim=True))
        return torch.cat(read_out, 2).permute(0, 1, 3, 5, 4, 2).flatten(3)[..., :length]


def _in_runs(v: Tensor) -> Tensor:
    groups, channels = v.shape[1:3]
    return v.reshape(-1, groups, channels, v.shape[3] // (RUN * RUN), RUN, RUN).permute(0, 1, 2, 5, 4, 3)


def _states_before(left: Tensor, added: Tensor) -> Tensor:
    lefts = [left.narrow(4, i, 1) for i in range(RUN)]
    addeds = [added.narrow(4, i, 1) for i in range(RUN)]
    whole_left, whole_added = lefts[0], addeds[0]
    for run_left, run_added in zip(lefts[1:], addeds[1:], strict=True):
        whole_left, whole_added = run_left * whole_left, run_left * whole_added + run_added
    position = torch.arange(left.shape[5])
    for i in range(DOUBLINGS):
        earlier = position - 2**i
        present, earlier = (earlier >= 0).to(left.dtype), earlier.clamp(min=0)
        whole_added = whole_left * (whole_added.index_select(5, earlier) * present) + whole_added
        whole_left = whole_left * whole_left.index_select(5, earlier)
    states = [whole_added.index_select(5, (position - 1).clamp(min=0)) * (position > 0).to(left.dtype)]
    for run_left, run_added in zip(lefts[:-1], addeds[:-1], strict=True):
        states.append(run_left * states[-1] + run_added)
    return torch.cat(states, 4)


NAMES = ("x", "step", "rate", "write", "read")


def inputs(network: str, pixels: int, batch: int = 1) -> dict[str, np.ndarray]:
    """Made up, with long memories and short ones."""
    groups, channels, states = NETWORKS[network]
    random = np.random.default_rng(0)
    x, wish = random.standard_normal((2, batch, groups, channels, pixels))
    write, read = random.standard_normal((2, batch, groups, states, pixels))
    arrays = (x, np.log1p(np.exp(wish - 2)), -4 * random.random((groups, channels, states)), write, read)
    return {name: array.astype(np.float32) for name, array in zip(NAMES, arrays, strict=True)}


def exported(module: nn.Module, network: str) -> bytes:
    """As ``export`` makes it, any number of pixels."""
    free: dict[int, torch.export.Dim] = {0: torch.export.Dim("batch"), 3: torch.export.Dim("pixels")}
    example = tuple(torch.from_numpy(array) for array in inputs(network, 999, batch=2).values())
    program = torch.onnx.export(
        module.eval(),
        example,
        dynamo=True,
        opset_version=20,
        optimize=False,
        verbose=False,
        input_names=list(NAMES),
        dynamic_shapes=(free, free, {}, free, free),
    )
    assert program is not None
    model = lowered(program.model)
    fold_constants(model.graph)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def measure(path: Path, network: str, side: int) -> dict[str, float]:
    """Of one model in this process, which must be new: its memory is the process's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_mem_pattern, options.log_severity_level = 1, False, 4
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(path, options)
    opened = time.perf_counter() - start
    feeds = inputs(network, side * side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        (result,) = session.run(None, feeds)
        times.append(time.perf_counter() - start)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    np.save(path.with_suffix(f".{side}.npy"), result)
    return {"open_ms": 1e3 * opened, "run_ms": 1e3 * median(times), "mib": taken / 1024}


def main() -> None:
    """Measure each network at each side, both ways, in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        path, network, side = arguments.one
        print(json.dumps(measure(Path(path), network, int(side))))
        return
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            ways = {"plain operators": PlainOperators(), "loops": Loops()}
            for way, module in ways.items():
                (Path(folder) / f"{network} {way}.onnx").write_bytes(exported(module, network))
            for side in arguments.sides:
                for way in ways:
                    path = Path(folder) / f"{network} {way}.onnx"
                    command = [sys.executable, __file__, "--one", str(path), network, str(side)]
                    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                    figures = f"{found['run_ms']:.0f} ms | {found['mib']:.0f} MiB | {found['open_ms']:.0f} ms"
                    print(f"| {network} | {side}x{side} | {way} | {figures} |", flush=True)
                results = [np.load(Path(folder) / f"{network} {way}.{side}.npy") for way in ways]
                apart = np.abs(results[0] - results[1]).max() / np.abs(results[0]).max()
                print(f"apart by {apart:.0e} of the largest value", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
