"""Network -> ONNX as trained, every branch still there, batch, height and width dynamic."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

import onnx_ir as ir

from espan_deploy.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

OPSET = 20
"""The first with everything our networks use at its present meaning; TensorRT reads it since 10.3."""

INPUT, OUTPUT = "input", "output"

TRACED_SIZE = (2, 3, 24, 20)
"""Batch, channels, height, width of the example: all different, so that none is taken for another."""


def onnx_from_module(module: nn.Module, *, static_size: tuple[int, int] | None = None) -> ir.Model:
    """Export a network in evaluation mode as a float32 graph (N, 3, H, W) -> (N, 3, scale*H, scale*W).

    static_size: height and width to fix in the graph; by default both are dynamic, and the batch always is.
    Nothing is optimised, so that the fold sees every branch, in the float32 weights of the checkpoint.
    Raises ExportError, saying what blocks it.
    """
    import torch

    batch, channels, height, width = TRACED_SIZE
    dynamic: dict[int, str] = {0: "batch"}
    if static_size is None:
        dynamic.update({2: "height", 3: "width"})
    else:
        height, width = static_size
    example = torch.zeros(batch, channels, height, width)
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(dynamic,),
                optimize=False,
                verbose=False,
            )
    except Exception as exc:  # the exporter raises dozens of kinds, wrapped in its own
        what = "with dynamic sizes" if static_size is None else f"at {height}x{width}"
        cause = _cause(exc)
        hint = "--static 256x256 exports it for one size" if static_size is None else ""
        if "DataDependent" in cause:
            hint = "a graph takes no decisions on pixels: write the branch with torch.where"
        raise ExportError(f"the network cannot be exported {what}: {cause}", hint=hint) from exc
    assert program is not None
    return program.model


def _cause(exc: BaseException) -> str:
    """The innermost message, one sentence of it: the exporter wraps what failed several times."""
    while (inner := exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)) is not None:
        exc = inner
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    told = " ".join(lines[:2]) if lines and lines[0].endswith(":") else next(iter(lines), "no message")
    return f"{type(exc).__name__}: {told}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and deprecation notes, meant for its own developers, off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    # On failure the exporter prints whole graphs; what failed is in the exception too.
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
