"""The precision gate: a reduced-precision model ships only after it was compared with FP32 on images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from espan_deploy.backends.base import Runner
from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.description import ModelDescription
from espan_deploy.precision.emulate import emulate_half
from espan_deploy.precision.images import VerifyImage
from espan_deploy.recipes import Budget

Upscaler = Callable[[NDArray[np.uint8]], NDArray[np.float64]]
"""(H, W, 3) uint8 -> (scale*H, scale*W, 3) in levels, 0 black and 255 white, as little rounded as can be had."""

BORDER = 4
"""Pixels left out on every side when comparing with the truth, as everybody does."""

MIN_TRUTH_SIDE = 2 * BORDER + 1


@dataclass(frozen=True)
class Comparison:
    """What a comparison measured; all but nonfinite on the 8-bit outputs.

    images, values: how many were compared; stress images count in nonfinite only.
    psnr_db: over all values of all images, infinite where they are equal; worst_psnr_db: of the worst image.
    largest_error: in levels. off_by_one, off_by_more: shares of values. nonfinite: count, before clipping,
    of those that are finite in FP32.
    reference_truth_db, truth_db: mean PSNR against the truth, None where no image has one.
    """

    images: int
    values: int
    psnr_db: float
    worst_psnr_db: float
    worst_image: str
    largest_error: int
    off_by_one: float
    off_by_more: float
    nonfinite: int
    reference_truth_db: float | None = None
    truth_db: float | None = None

    @property
    def truth_drop_db(self) -> float | None:
        """How much PSNR against the truth is lost."""
        if self.truth_db is None or self.reference_truth_db is None:
            return None
        return self.reference_truth_db - self.truth_db

    def to_dict(self) -> dict[str, Any]:
        """For a report; JSON knows no infinity, so an infinite PSNR is None."""
        figures = {**asdict(self), "truth_drop_db": self.truth_drop_db}
        return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in figures.items()}

    def summary(self) -> str:
        """The figures in one line."""
        truth = "" if self.truth_drop_db is None else f", {self.truth_drop_db:+.4f} dB lost against the truth"
        return (
            f"{self.psnr_db:.1f} dB from FP32 ({self.worst_psnr_db:.1f} on {self.worst_image}), {self.off_by_one:.2%} "
            f"of values one level off, {self.off_by_more:.3%} more (at most {self.largest_error}), "
            f"{self.nonfinite} not finite{truth}; {self.images} images"
        )

    def violations(self, budget: Budget) -> list[str]:
        """What is outside of the budget, in words; empty where nothing is."""
        found = []
        if self.nonfinite > budget.max_nonfinite:
            found.append(f"{self.nonfinite} values are not finite, at most {budget.max_nonfinite} may be")
        if self.psnr_db < budget.min_psnr_db:
            found.append(f"{self.psnr_db:.2f} dB from FP32, at least {budget.min_psnr_db:g} wanted")
        if self.off_by_more > budget.max_share_off_by_more:
            found.append(
                f"{self.off_by_more:.4%} of values are more than one level off (by up to {self.largest_error}), "
                f"at most {budget.max_share_off_by_more:.4%} may be"
            )
        if self.truth_drop_db is not None and self.truth_drop_db > budget.max_truth_drop_db:
            found.append(
                f"{self.truth_drop_db:.4f} dB lost against the truth, at most {budget.max_truth_drop_db:g} may be"
            )
        return found


def compare(reference: Upscaler, candidate: Upscaler, images: Iterable[VerifyImage]) -> Comparison:
    """Upscale every image with both and measure how far apart they are."""
    shown = list(images)
    return compare_levels([reference(image.low) for image in shown], candidate, shown)


def compare_levels(
    references: Sequence[NDArray[np.float64]], candidate: Upscaler, images: Sequence[VerifyImage]
) -> Comparison:
    """As ``compare``, where the reference's outputs are at hand."""
    squared, count, nonfinite, one, more, largest = 0.0, 0, 0, 0, 0, 0
    worst = (math.inf, "")
    truths: list[tuple[float, float]] = []
    for image, expected in zip(images, references, strict=True):
        result = candidate(image.low)
        nonfinite += int(np.count_nonzero(np.isfinite(expected) & ~np.isfinite(result)))
        if image.stress:
            continue
        wanted, got = to_bytes(expected), to_bytes(result)
        error = np.abs(got.astype(np.int16) - wanted)
        image_squared = float(np.square(error, dtype=np.float64).sum())
        squared, count = squared + image_squared, count + error.size
        one, more = one + int((error == 1).sum()), more + int((error > 1).sum())
        largest = max(largest, int(error.max()))
        worst = min(worst, (_psnr(image_squared, error.size), image.name))
        if image.high is not None and min(image.high.shape[:2]) >= MIN_TRUTH_SIDE:
            truths.append((_truth_psnr(wanted, image.high), _truth_psnr(got, image.high)))
    return Comparison(
        images=len(images),
        values=count,
        psnr_db=_psnr(squared, count),
        worst_psnr_db=worst[0],
        worst_image=worst[1],
        largest_error=largest,
        off_by_one=one / max(1, count),
        off_by_more=more / max(1, count),
        nonfinite=nonfinite,
        reference_truth_db=float(np.mean([t[0] for t in truths])) if truths else None,
        truth_db=float(np.mean([t[1] for t in truths])) if truths else None,
    )


def to_bytes(levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Clip and round to nearest; what is not a number turns black, as it does in a file."""
    finite = np.nan_to_num(levels, nan=0.0, posinf=255.0, neginf=0.0)
    rounded: NDArray[np.uint8] = np.rint(np.clip(finite, 0, 255)).astype(np.uint8)
    return rounded


def _psnr(squared: float, count: int) -> float:
    return math.inf if squared == 0 else 10 * math.log10(255.0**2 * count / squared)


def _truth_psnr(result: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    rows, columns = (min(a, b) for a, b in zip(result.shape[:2], truth.shape[:2], strict=True))
    inner = (slice(BORDER, rows - BORDER), slice(BORDER, columns - BORDER))
    error = result[inner].astype(np.float64) - truth[inner]
    return _psnr(float(np.square(error).sum()), error.size)


def graph_upscaler(model: onnx.ModelProto, description: ModelDescription, *, emulate: bool = True) -> Upscaler:
    """A graph, run by ONNX Runtime on the CPU; bytes are given out before their last cast, so that NaN shows.

    emulate: round every FP16 value as a GPU does (see ``emulate``); a graph without FP16 stays as it is.
    """
    evaluator = GraphEvaluator(_without_byte_cast(emulate_half(model) if emulate else model))
    white = description.value_range

    def upscale(low: NDArray[np.uint8]) -> NDArray[np.float64]:
        if description.pixels == "uint8":
            return np.asarray(evaluator.run(low[None])[0][0], np.float64)
        ordered = low if description.color_order == "RGB" else low[..., ::-1]
        planes = np.ascontiguousarray(ordered.transpose(2, 0, 1)[None])
        values = (planes.astype(np.float32) * np.float32(white / 255)).astype(description.pixels)
        result: NDArray[np.float64] = evaluator.run(values)[0][0].astype(np.float64).transpose(1, 2, 0) * (255 / white)
        return result if description.color_order == "RGB" else result[..., ::-1]

    return upscale


def runner_upscaler(runner: Runner) -> Upscaler:
    """An open engine. Its bytes are compared where its pixels are bytes, its floats elsewhere."""

    def upscale(low: NDArray[np.uint8]) -> NDArray[np.float64]:
        as_bytes = runner.description.pixels == "uint8"
        result = runner.infer(low[None] if as_bytes else low[None].astype(np.float32) / np.float32(255))[0]
        levels: NDArray[np.float64] = result.astype(np.float64) * (1 if as_bytes else 255)
        return levels

    return upscale


def _without_byte_cast(model: onnx.ModelProto) -> onnx.ModelProto:
    output = model.graph.output[0]
    last = next((node for node in model.graph.node if output.name in node.output), None)
    if last is None or last.op_type != "Cast" or output.type.tensor_type.elem_type != TensorProto.UINT8:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    source = last.input[0]
    result.graph.node.remove(last)
    del result.graph.output[:]
    result.graph.output.append(onnx.ValueInfoProto(name=source))
    return result
