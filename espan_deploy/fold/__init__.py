"""Folding: every linear region of a graph becomes its cheapest equivalent convolution, proven in float64.

No knowledge of block classes goes in. A region is found by what its operators are, identified by what it does to
an impulse, and replaced only after it was compared with its replacement on random inputs, the border ring apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from espan_deploy.errors import FoldError
from espan_deploy.fold.affine import barrier
from espan_deploy.fold.evaluate import Evaluator, fold_constants, narrow, widen
from espan_deploy.fold.identify import TOLERANCE, Identified, SizeChange, identify
from espan_deploy.fold.regions import Region, channels_of, has_weights, module_path, regions_of
from espan_deploy.fold.report import FoldReport, FoldSite, Refusal
from espan_deploy.fold.surgery import drop_zero_biases, replace_region
from espan_deploy.graph.kinds import Kind, classify, data_inputs

__all__ = ["Borders", "FoldReport", "FoldResult", "FoldSite", "Refusal", "fold"]

Borders = Literal["exact", "approximate"]

COUNTED_SIDE = 256
"""Rows and columns of the feature map on which costs are compared: the challenge reports' image."""


@dataclass(frozen=True)
class FoldResult:
    """The folded model, in float32 and as it was computed in float64, and the report."""

    model: ir.Model
    model_float64: ir.Model
    report: FoldReport


@dataclass(frozen=True)
class _Candidate:
    """A region, what it computes, and what would go if it were computed that way.

    multiply_adds_before: for one position of the feature map, counted as if every map in the region were as large.
    saved: multiply-adds saved on a map of COUNTED_SIDE rows and columns, each map in the region counted as large as it
    is: what is moved behind a padding multiplies zeros.
    """

    region: Region
    found: Identified
    gone: tuple[ir.Node, ...]
    multiply_adds_before: int
    saved: int

    @property
    def path(self) -> str:
        return _path(self.gone)

    @property
    def gain(self) -> tuple[int, int]:
        """Multiply-adds saved, then nodes saved."""
        return self.saved, len(self.gone) - self.found.nodes


def fold(model: ir.Model, *, borders: Borders = "exact") -> FoldResult:
    """Fold every linear region of a lowered float32 model; the model given is left alone.

    borders: "exact" refuses what is not the same convolution at the image's border; "approximate" folds it too,
    and reports the error there.
    Raises FoldError where the graph cannot be evaluated in float64.
    """
    wide = widen(model)
    fold_constants(wide.graph)
    drop_zero_biases(wide.graph)
    RemoveUnusedNodesPass()(wide)
    folder = _Folder(wide, borders)
    sites: list[FoldSite] = []
    while found := folder.one_pass():
        sites.extend(found)
    return FoldResult(narrow(wide), wide, FoldReport(tuple(sites), tuple(folder.refusals())))


class _Folder:
    """One model being folded in place; measurements are kept, for a pass meets most regions of the last one again."""

    def __init__(self, model: ir.Model, borders: Borders) -> None:
        self._model, self._graph, self._borders = model, model.graph, borders
        self._evaluator = Evaluator(model.graph)
        self._measured: dict[tuple[Region, int], Identified | FoldError] = {}
        self._refusals: dict[str, Refusal] = {}
        self._look()

    def _look(self) -> None:
        self._kinds = classify(self._graph)
        self._positions = {node: index for index, node in enumerate(self._graph)}

    def one_pass(self) -> list[FoldSite]:
        """Fold what can be folded, going once from the last feature map to the first."""
        sites = []
        self._refusals.clear()
        for target in [output for node in reversed(self._graph) for output in reversed(node.outputs)]:
            node = target.producer()
            alive = node is not None and node.graph is self._graph and (target.uses() or target.is_graph_output())
            if not alive or channels_of(target) is None:
                continue
            best = self._best(target)
            if best is not None:
                sites.append(self._apply(best))
        return sites

    def refusals(self) -> Iterator[Refusal]:
        """What the last pass refused, and what stands before each convolution that is left."""
        yield from self._refusals.values()
        named = set(self._refusals)
        for node in self._graph:
            path = _path((node,))
            if has_weights(node) and path not in named and (reason := self._barrier_before(node)):
                named.add(path)
                yield Refusal(path, reason)

    def _barrier_before(self, node: ir.Node) -> str:
        if what := barrier(node, self._kinds):
            return f"it is {what}"
        pending, seen = [node], {node}
        while pending:
            for value in data_inputs(pending.pop(), self._kinds):
                producer = value.producer()
                if producer is None or producer in seen or has_weights(producer):
                    continue
                if what := barrier(producer, self._kinds):
                    return f"it follows {what}"
                seen.add(producer)
                pending.append(producer)
        return ""

    def _best(self, target: ir.Value) -> _Candidate | None:
        """The region ending in target that saves most.

        Where none may be folded, the reason is noted: that of the smallest stretch that is affine in one map.
        What reads several maps is tried too, but nobody would expect it to be one convolution.
        """
        best: _Candidate | None = None
        refusal: Refusal | None = None
        for region in regions_of(target, self._positions, self._kinds):
            gone = region.removable(self._kinds)
            if len(region.nodes) < 2 or not any(map(has_weights, gone)):
                continue
            before = sum(self._multiply_adds(node) for node in gone)
            found = self._measure(region, before)
            if isinstance(found, FoldError):
                reason = found.message
            else:
                candidate = _Candidate(region, found, gone, before, self._saved(found, gone))
                reason = _reason_against(candidate, self._borders)
                if not reason and candidate.gain > (best.gain if best else (0, 0)):
                    best = candidate
            if reason and len(region.sources) == 1:
                refusal = refusal or Refusal(_path(region.nodes), reason)
        if best is None and refusal is not None:
            self._refusals.setdefault(refusal.path, refusal)
        return best

    def _measure(self, region: Region, budget: int) -> Identified | FoldError:
        key = (region, budget)
        if key not in self._measured:
            try:
                self._measured[key] = identify(region, self._evaluator, budget)
            except FoldError as exc:
                self._measured[key] = exc
        return self._measured[key]

    def _saved(self, found: Identified, gone: tuple[ir.Node, ...]) -> int:
        before = sum(
            self._multiply_adds(node) * _positions(found.size_changes.get(node.outputs[0], (0, 0)))
            for node in gone
            if has_weights(node)
        )
        return before - found.multiply_adds * _positions(found.size_change)

    def _multiply_adds(self, node: ir.Node) -> int:
        """Of one position of the feature map; 0 for what multiplies no weights."""
        if not has_weights(node):
            return 0
        weights = [v for v in node.inputs[:2] if v is not None and self._kinds.get(v, Kind.CONSTANT) != Kind.DATA]
        constant = next((v.const_value for v in weights if v.const_value is not None), None)
        return 0 if constant is None else constant.size

    def _apply(self, best: _Candidate) -> FoldSite:
        found = best.found
        replace_region(self._graph, best.region, found, best.path)
        RemoveUnusedNodesPass()(self._model)
        self._look()
        return FoldSite(
            path=best.path,
            convolutions_before=sum(map(has_weights, best.gone)),
            convolutions_after=len(found.convolutions),
            nodes_before=len(best.gone),
            nodes_after=found.nodes,
            multiply_adds_before=best.multiply_adds_before,
            multiply_adds_after=found.multiply_adds,
            kernels=tuple(convolution.kernel for convolution in found.convolutions),
            error_inside=found.error_inside,
            error_border=found.error_border,
            exact=found.error_border <= TOLERANCE,
        )


def _positions(size_change: SizeChange) -> int:
    return (COUNTED_SIDE + size_change[0]) * (COUNTED_SIDE + size_change[1])


def _path(nodes: tuple[ir.Node, ...]) -> str:
    return module_path(tuple(filter(has_weights, nodes)) or nodes)


def _reason_against(candidate: _Candidate, borders: Borders) -> str:
    """Why this candidate must not be folded, or ""."""
    found = candidate.found
    if found.error_inside > TOLERANCE:
        return f"it is not a convolution: off by {found.error_inside:.1e} of its largest value"
    if found.error_border > TOLERANCE and borders == "exact":
        return f"it differs at the image's border by {found.error_border:.1e} of its largest value"
    if candidate.saved < 0:
        return f"one convolution would cost more: {-candidate.saved} multiply-adds, of a padding's zeros"
    return ""
