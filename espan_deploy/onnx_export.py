"""Network -> ONNX as trained, every branch still there, batch, height and width dynamic."""

from __future__ import annotations

import logging
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from espan_deploy.apart import (
    CrashedError,
    OutOfTimeError,
    can_run_apart,
    run_apart,
    without_warnings,
)
from espan_deploy.errors import ExportError, NotTraceableError
from espan_deploy.graph.lowering import lowered

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 20
"""The first with everything our networks use at its present meaning; TensorRT reads it since 10.3."""

INPUT, OUTPUT = "input", "output"

TRACED_BATCH = 2
"""Of the example: a batch of one would be taken for a batch that is always one."""

TRACED_SIZE = (27, 37)
"""Height and width of the example: different from each other and from the rest, so that none is taken for another, and
no multiples of anything: a network that pads only where it must is exported as it pads, which is right for all."""

LARGE_TRACED_SIZE = (163, 133)
"""Of a second example, for a network that decides on sizes in Python: what it does with large images, it does here."""


MOST_COMPUTING_S = 600
"""Of one attempt. The slowest of both challenges' systems takes a third of it for the whole command."""

NOT_OF_A_NETWORK = {"torch", "onnxscript", "onnx_ir", "sympy", "mpmath", "apart.py", "exportable.py"}
"""Parts of the paths of code that runs while a network is traced."""

CALL = re.compile(r'raised this error:\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]+\n(?P<code>[^\n]+)')
"""How PyTorch's exporter names the line of a network that decides on pixels."""


def onnx_from_module(
    module: nn.Module,
    *,
    traced: tuple[int, int] = TRACED_SIZE,
    static: bool = False,
    any_batch: bool = True,
    multiple: int = 1,
) -> ir.Model:
    """Export a network in evaluation mode as a lowered float32 graph (N, 3, H, W) -> (N, 3, scale*H, scale*W).

    traced: height and width of the example it is traced with. static: whether the graph is fixed to that height and
    width; by default both are dynamic. any_batch: whether the batch is; else it is one. multiple: of the sizes it
    takes; where PyTorch's exporter cannot work out which sizes those are, it is told.
    Nothing is optimised, so that the fold sees every branch, in the float32 weights of the checkpoint.
    Raises ExportError, saying what blocks it; NotTraceableError, where that is a decision on pixels.
    """
    import torch

    height, width = traced
    if not static and height == width:
        width += width  # or one would be taken for the other
    axes: dict[int, Any] = {0: "batch"} if any_batch else {}
    if not static:
        axes.update({2: "height", 3: "width"})
    example = torch.zeros(TRACED_BATCH if any_batch else 1, 3, height, width)
    try:
        return _exported(module, example, axes)
    except Exception as exc:  # the exporter raises dozens of kinds, wrapped in its own
        what = f"at {height}x{width}" if static else "with dynamic sizes"
        cause = _cause(exc)
        if "DataDependent" in cause:
            raise NotTraceableError(
                f"the network cannot be exported {what}: {cause}",
                hint="a graph takes no decisions on pixels: write the branch with torch.where",
            ) from exc
        if "No ONNX function" in cause:
            raise NotTraceableError(f"the network cannot be exported: {cause}") from exc
        if multiple > 1 and not static:
            told = {axis: multiple * torch.export.Dim(name) for axis, name in axes.items()}
            if any_batch:
                told[0] = torch.export.Dim("batch")
            with suppress(Exception):
                return _exported(module, example, told)
        hint = "" if static else "--static 256x256 exports it for one size"
        raise ExportError(f"the network cannot be exported {what}: {cause}", hint=hint) from exc


def _exported(module: nn.Module, example: Tensor, axes: dict[int, Any]) -> ir.Model:
    """The lowered graph, traced with an example. axes: names of those that stay open, or what is known of them."""
    import torch

    from espan_deploy.networks.exportable import Exportable

    with _quiet(), Exportable():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(axes,),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return lowered(program.model)


def onnx_from_module_apart(
    module: nn.Module,
    *,
    traced: tuple[int, int] = TRACED_SIZE,
    static: bool = False,
    any_batch: bool = True,
    multiple: int = 1,
) -> ir.Model:
    """The same in a child process where the system has safe ones: its warnings and crashes end there.

    Raises ExportError also where PyTorch's exporter ended its process, NotTraceableError where it took too long.
    """
    import torch

    def export() -> ir.Model:
        return onnx_from_module(module, traced=traced, static=static, any_batch=any_batch, multiple=multiple)

    def serialised() -> bytes:
        torch.set_num_threads(1)  # a forked process has none of its parent's threads
        content: bytes = ir.to_proto(export()).SerializeToString()
        return content

    if not can_run_apart():
        return export()
    _warm_up()
    try:
        content = run_apart(serialised, most_s=MOST_COMPUTING_S)
    except CrashedError as exc:
        raise ExportError(f"PyTorch's exporter crashed on this network ({exc})") from exc
    except OutOfTimeError as exc:
        raise NotTraceableError(
            f"PyTorch's exporter was still at work after {MOST_COMPUTING_S / 60:.0f} minutes{_last_line(exc.stack)}",
            hint="a loop over parts of the image is traced once for each, or for none: "
            "--static 64x64 exports the network for one size, the smaller the sooner",
        ) from exc
    return ir.from_proto(onnx.load_from_string(content))


@cache
def _warm_up() -> None:
    """Load what the exporter loads on first use, once, rather than in every child."""
    from torch import nn

    onnx_from_module(nn.Identity())


def module_function(module: nn.Module) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """A network as a function of arrays, (N, 3, H, W) -> (N, 3, scale*H, scale*W), computed by one thread.

    What an export tries is small, and gains nothing by more. Where others use the machine too, each of hundreds of
    convolutions waits for a thread that has no core: two threads beside one busy program took fifty times as long.
    """
    import torch

    from espan_deploy.networks.exportable import Stable

    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode(), without_warnings(), _one_thread(), Stable():
            # A copy: some networks write into what they are given.
            result: NDArray[np.float32] = module(torch.from_numpy(x.copy())).numpy()
        return result

    return forward


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch's own operators keep to the caller's thread meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cause(exc: BaseException) -> str:
    """The innermost message, one sentence of it: the exporter wraps what failed several times."""
    while (inner := exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)) is not None:
        exc = inner
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    told = " ".join(lines[:2]) if lines and lines[0].endswith(":") else next(iter(lines), "no message")
    place = CALL.search(str(exc))
    where = f" ({Path(place['file']).name}, line {place['line']}: {place['code'].strip()})" if place else ""
    return f"{type(exc).__name__}: {told.rstrip('. ')}{where}"


def _last_line(frames: list[traceback.FrameSummary]) -> str:
    """The line of the network that was being traced, or "" where it was not being traced."""
    parts = [{*Path(frame.filename).parts} for frame in frames]
    traced = next((i for i, found in enumerate(parts) if "torch" in found), len(frames))
    own = [
        frames[i]
        for i in range(traced, len(frames))
        if not NOT_OF_A_NETWORK & parts[i] and not _of_standard_library(frames[i])
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else ""


def _of_standard_library(frame: traceback.FrameSummary) -> bool:
    """Whether it is a line of the standard library."""
    path = Path(frame.filename)
    return path.is_relative_to(sysconfig.get_path("stdlib")) and "site-packages" not in path.parts


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and deprecation notes, meant for its own developers, off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    # On failure the exporter prints whole graphs; what failed is in the exception too.
    with without_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
