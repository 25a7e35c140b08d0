"""Which layers cost a reduced-precision model its quality, and the smallest set to keep in FP32."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import inliner

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.description import ModelDescription
from espan_deploy.errors import VerificationError
from espan_deploy.precision.gate import Comparison, Upscaler, compare_levels, graph_upscaler
from espan_deploy.precision.half import HALF_MAX, HalfResult, lift_constants, to_half
from espan_deploy.precision.images import VerifyImage
from espan_deploy.precision.layers import GLOB, layers_of, name_nodes
from espan_deploy.recipes import Budget

KeepFp32 = Sequence[str] | Literal["auto"]

SEARCH_SIDE = 64
"""Sensitivities are measured on crops of this size: only their order matters."""

SEARCH_IMAGES = 6

GROUP = 8
"""Layers are measured by so many at once first, and one by one only where a group's error counts: each takes a session,
which is seconds for a graph of thousands of operators."""

COUNTING = 0.8
"""The share of the error that the groups with the largest must explain together."""

NAMED = 5
"""How many layers a failure names."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LayerError:
    """Mean squared error, in levels, that one layer alone in FP16 causes; infinite where it yields no number.

    peak: the largest magnitude among the layer's values in FP32.
    """

    layer: str
    squared_error: float
    peak: float


@dataclass(frozen=True)
class GateReport:
    """The FP16 graph that passed, with what was measured of it.

    kept: layers in FP32. sensitivity: worst layer first, empty where nobody asked.
    """

    half: HalfResult
    comparison: Comparison
    budget: Budget
    kept: tuple[str, ...]
    sensitivity: tuple[LayerError, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "comparison": self.comparison.to_dict(),
            "budget": self.budget.__dict__,
            "kept_fp32": list(self.kept),
            "sensitivity": [
                {"layer": s.layer, "mse": s.squared_error if math.isfinite(s.squared_error) else None, "peak": s.peak}
                for s in self.sensitivity
            ],
            "conversion": self.half.to_dict(),
        }


def half_within_budget(
    model: onnx.ModelProto,
    description: ModelDescription,
    images: Sequence[VerifyImage],
    *,
    budget: Budget | None = None,
    keep_fp32: KeepFp32 = (),
    progress: Progress | None = None,
) -> GateReport:
    """Turn a float32 model, its pixels as they are to be, to FP16, and hold the result to a budget.

    keep_fp32: layers to keep, or "auto" to find a smallest set that passes: those whose values FP16 does not hold, or
    where that is not enough, greedily, by what each layer costs alone; then dropping what turns out not to be needed.
    Raises VerificationError with the figures, the layers responsible and what to keep in FP32.
    """
    say = progress or (lambda _text: None)
    budget = budget or Budget()
    reference = graph_upscaler(model, description)
    say(f"upscaling {len(images)} images in FP32")
    levels = [reference(image.low) for image in images]

    def attempt(kept: Iterable[str]) -> GateReport:
        names = tuple(kept)
        half = to_half(model, keep_fp32=[_literal(name) for name in names] if keep_fp32 == "auto" else names)
        comparison = compare_levels(levels, graph_upscaler(half.model, description), images)
        say(f"FP16 with {len(names)} layers in FP32: {comparison.summary()}")
        return GateReport(half, comparison, budget, names)

    report = attempt(() if keep_fp32 == "auto" else keep_fp32)
    problems = report.comparison.violations(budget)
    if not problems:
        return report
    if keep_fp32 == "auto" and report.comparison.nonfinite > budget.max_nonfinite:
        beyond = layers_beyond_half(model, description, images)
        held = attempt(entry.layer for entry in beyond) if beyond else report
        if not held.comparison.violations(budget):
            return replace(_without_unneeded(held, attempt, budget), sensitivity=beyond)
    ranking = layer_errors(model, description, images, progress=say)
    if keep_fp32 == "auto":
        found = _search(ranking, attempt, budget)
        if found is not None:
            return replace(found, sensitivity=ranking)
        problems = ["no set of layers kept in FP32 passes", *problems]
    raise _failure(problems, report, ranking)


def layers_beyond_half(
    model: onnx.ModelProto, description: ModelDescription, images: Sequence[VerifyImage]
) -> tuple[LayerError, ...]:
    """The layers that make or read, in FP16, values that it does not hold; those with the largest first.

    One run in FP32 tells, where each layer's cost alone takes a run for each.
    """
    named = _named(model)
    full = to_half(model).fp32_nodes
    peaks = _value_peaks(named, description, [image.low for image in images])
    found = []
    for layer in layers_of(named.graph):
        nodes = set(layer.nodes).difference(full)
        read = (name for node in named.graph.node if node.name in nodes for name in (*node.input, *node.output))
        peak = max((peaks.get(name, 0.0) for name in read), default=0.0)
        if peak > HALF_MAX:
            found.append(LayerError(layer.name, math.inf, peak))
    return tuple(sorted(found, key=lambda entry: -entry.peak))


def layer_errors(
    model: onnx.ModelProto,
    description: ModelDescription,
    images: Sequence[VerifyImage],
    *,
    progress: Progress | None = None,
) -> tuple[LayerError, ...]:
    """What each layer costs when it alone is FP16, worst first, measured on crops of a few images.

    Of the groups of layers that cost little, a layer's error is its even share.
    """
    named = _named(model)
    layers = [layer.name for layer in layers_of(named.graph)]
    shown = sorted(images, key=lambda image: not image.stress)[:SEARCH_IMAGES]
    crops = [replace(image, low=_crop(image, description.size_multiple)) for image in shown]
    reference = graph_upscaler(model, description)
    levels = [reference(crop.low) for crop in crops]
    peaks = _peaks(named, description, [crop.low for crop in crops])
    say = progress or (lambda _text: None)

    def cost(group: Sequence[str]) -> float:
        first, last = layers.index(group[0]) + 1, layers.index(group[-1]) + 1
        span = f"layer {first}" if first == last else f"layers {first} to {last}"
        say(f"measuring {span} of {len(layers)}: {group[0]}")
        others = [_literal(name) for name in layers if name not in group]
        candidate = graph_upscaler(to_half(model, keep_fp32=others).model, description)
        return _mean_squared_error(candidate, crops, levels)

    groups = [layers[start : start + GROUP] for start in range(0, len(layers), GROUP)]
    costs = [cost(group) for group in groups] if len(groups) > 1 else [math.inf]
    errors: dict[str, float] = {}
    left = (1 - COUNTING) * sum(filter(math.isfinite, costs))
    for total, group in sorted(zip(costs, groups, strict=True), key=lambda each: each[0]):
        left -= total
        if left >= 0:
            errors |= dict.fromkeys(group, total / len(group))
        else:
            errors |= {layer: cost([layer]) for layer in group}
    found = (LayerError(layer, error, peaks[layer]) for layer, error in errors.items())
    return tuple(sorted(found, key=lambda e: (-e.squared_error, -e.peak)))


def _search(
    ranking: Sequence[LayerError], attempt: Callable[[Iterable[str]], GateReport], budget: Budget
) -> GateReport | None:
    """The fewest of the worst layers that pass, by bisection; then give back each that it passes without."""
    names = [entry.layer for entry in ranking]
    # What yields no number alone can only be kept.
    low = sum(not math.isfinite(entry.squared_error) for entry in ranking)
    high = len(names)
    report = attempt(names)
    if report.comparison.violations(budget):
        return None
    while low < high:
        middle = (low + high) // 2
        smaller = attempt(names[:middle])
        if smaller.comparison.violations(budget):
            low = middle + 1
        else:
            high, report = middle, smaller
    return _without_unneeded(report, attempt, budget, known=report.kept[-1:])


def _without_unneeded(
    report: GateReport,
    attempt: Callable[[Iterable[str]], GateReport],
    budget: Budget,
    *,
    known: Collection[str] = (),
) -> GateReport:
    """Give back each layer that it passes without, the last first. known: those it does not pass without."""
    for name in reversed(report.kept):
        if name in known:
            continue
        smaller = attempt(kept for kept in report.kept if kept != name)
        if not smaller.comparison.violations(budget):
            report = smaller
    return report


def _failure(problems: Sequence[str], report: GateReport, ranking: Sequence[LayerError]) -> VerificationError:
    total = sum(entry.squared_error for entry in ranking)
    parts = []
    for entry in ranking[:NAMED]:
        if entry.peak > HALF_MAX:
            parts.append(f"{entry.layer} (its values reach {entry.peak:.3g}, FP16 ends at {HALF_MAX:.0f})")
        elif not math.isfinite(entry.squared_error):
            parts.append(f"{entry.layer} (yields values that are not finite)")
        elif math.isfinite(total) and total > 0:
            parts.append(f"{entry.layer} ({entry.squared_error / total:.0%} of the error)")
        else:
            parts.append(entry.layer)
    worst = [entry.layer for entry in ranking if not math.isfinite(entry.squared_error)] or [ranking[0].layer]
    return VerificationError(
        f"FP16 is outside its budget: {'; '.join(problems)}. Measured: {report.comparison.summary()}. "
        f"Layers responsible: {', '.join(parts)}",
        hint=f"keep them in FP32 with --keep-fp32 {','.join(worst)}, or let --keep-fp32 auto find the smallest set",
    )


def _literal(name: str) -> str:
    """A pattern that means this name alone."""
    return "".join(f"[{character}]" if character in GLOB else character for character in name)


def _crop(image: VerifyImage, multiple: int) -> NDArray[np.uint8]:
    rows, columns = (min(SEARCH_SIDE, side) // multiple * multiple or multiple for side in image.low.shape[:2])
    top, left = (image.low.shape[0] - rows) // 2, (image.low.shape[1] - columns) // 2
    return np.ascontiguousarray(image.low[max(0, top) : top + rows, max(0, left) : left + columns])


def _mean_squared_error(
    candidate: Upscaler, crops: Sequence[VerifyImage], levels: Sequence[NDArray[np.float64]]
) -> float:
    squared, count = 0.0, 0
    for crop, expected in zip(crops, levels, strict=True):
        error = candidate(crop.low) - expected
        if not np.isfinite(error).all():
            return math.inf
        if not crop.stress:
            squared, count = squared + float(np.square(error).sum()), count + error.size
    return squared / max(1, count)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without functions, and with names for all nodes: those that ``to_half`` knows them by."""
    named = onnx.ModelProto()
    named.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
    lift_constants(named.graph)
    name_nodes(named.graph)
    return named


def _peaks(
    named: onnx.ModelProto, description: ModelDescription, crops: Sequence[NDArray[np.uint8]]
) -> dict[str, float]:
    """The largest magnitude among each layer's values, in FP32."""
    peaks = _value_peaks(named, description, crops)
    outputs = {node.name: node.output for node in named.graph.node}
    return {
        layer.name: max((peaks.get(name, 0.0) for node in layer.nodes for name in outputs[node]), default=0.0)
        for layer in layers_of(named.graph)
    }


def _value_peaks(
    named: onnx.ModelProto, description: ModelDescription, lows: Sequence[NDArray[np.uint8]]
) -> dict[str, float]:
    """The largest magnitude of each value that nodes compute in floats, in FP32."""
    own = [value.name for value in named.graph.output]
    values = [name for node in named.graph.node for name in node.output if name and name not in own]
    evaluator = GraphEvaluator(named, outputs=values)
    peaks: dict[str, float] = {}
    for low in lows:
        results = evaluator.run(_feed(low, description))
        for name, result in zip([*own, *values], results, strict=True):
            if result.size and np.issubdtype(result.dtype, np.floating):
                peaks[name] = max(peaks.get(name, 0.0), float(np.abs(result).max()))
    return peaks


def _feed(low: NDArray[np.uint8], description: ModelDescription) -> NDArray[Any]:
    if description.pixels == "uint8":
        return low[None]
    planes = low.transpose(2, 0, 1)[None].astype(np.float32) * np.float32(description.value_range / 255)
    return np.ascontiguousarray(planes.astype(description.pixels))
