"""A float32 model -> the same in INT8, as much of it as its budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from espan_deploy.description import METADATA_KEY, ModelDescription
from espan_deploy.errors import CalibrationError, ExportError, VerificationError
from espan_deploy.precision.breakdown import breaks_down
from espan_deploy.precision.gate import Comparison
from espan_deploy.precision.images import VerifyImage
from espan_deploy.precision.layers import layers_of, name_nodes, nodes_to_keep
from espan_deploy.quantize.arithmetic import ActivationCodes
from espan_deploy.quantize.judge import Judge
from espan_deploy.quantize.layers import quantizable, skipped_note
from espan_deploy.quantize.learn import Learnt, learn
from espan_deploy.quantize.pictures import CalibrationPictures
from espan_deploy.quantize.recipe import CalibrationRecipe
from espan_deploy.quantize.reconstruct import reconstruct
from espan_deploy.quantize.report import Int8Report
from espan_deploy.quantize.scheme import Scheme
from espan_deploy.quantize.sensitivity import (
    Decision,
    Sensitivity,
    decided_as,
    error_shares,
    free_layers,
    layer_errors,
    maybe_free,
    next_decisions,
    share_to_go,
    with_times,
    without,
    worth_timing,
)
from espan_deploy.quantize.split import with_split_concatenations
from espan_deploy.quantize.torch_graph import TorchGraph, convolution, unlearnable
from espan_deploy.quantize.writer import quantized_graph

if TYPE_CHECKING:
    import torch

SEED = 14

FITTED_CROPS, FITTED_SIDE = 48, 96
"""What ranges and rounding are found on."""

MEASURED_EVERY = 6
"""Of these crops, what layers' errors are measured on."""

KIND_CROPS, KIND_GROWTH = 16, 6.0
"""Crops of a kind that tell it: where most grow beyond so many times photographs' largest activation, it is left out.
Those of our own models grow to twice that on text, the released ESPAN's to thousands of times."""

TINY = float(np.finfo(np.float32).tiny)

ROUNDS = 8
"""So often is more tried in float."""

STEP = 0.5
"""Of the error that must go, at a guess, so much goes in a round: training makes up for more than was guessed."""

ROUND_SHARE = 0.25
"""Of the training, every round but the first."""

NAMED = 5

FLOAT: Decision = "float"
TWICE: Decision = "twice"

Progress = Callable[[str], None]


def int8_within_budget(
    model: onnx.ModelProto,
    description: ModelDescription,
    pictures: CalibrationPictures,
    images: Sequence[VerifyImage],
    recipe: CalibrationRecipe,
    *,
    keep: Sequence[str] | None = None,
    float_sha256: str = "",
    progress: Progress | None = None,
) -> Int8Report:
    """Quantise a described float32 model with float pixels, and hold the result to the recipe's budget.

    pictures: to calibrate on. images: to judge by. keep: layers that stay in float, and no others; None finds them.
    float_sha256: of the file of the float model, for the description.
    Raises CalibrationError where nothing can be quantised, ExportError for a layer that is not there, and
    VerificationError with the figures and the worst layers where the budget cannot be met.
    """
    say = progress or (lambda _text: None)
    work = _Work(model, description, pictures, images, recipe, say=say, float_sha256=float_sha256)
    return work.run(keep)


class _Work:
    """One calibration."""

    def __init__(
        self,
        model: onnx.ModelProto,
        description: ModelDescription,
        pictures: CalibrationPictures,
        images: Sequence[VerifyImage],
        recipe: CalibrationRecipe,
        *,
        say: Progress,
        float_sha256: str,
    ) -> None:
        self._model = with_split_concatenations(model)
        name_nodes(self._model.graph)
        self._description, self._pictures, self._recipe, self._say = description, pictures, recipe, say
        self._described = replace(description, precision="int8", float_sha256=float_sha256)
        self._white = description.value_range
        self._notes = list(pictures.notes)
        self._convolutions, self._skipped = quantizable(self._model.graph)
        if not self._convolutions:
            raise CalibrationError(f"{description.title} has no convolution that could be quantised")
        if self._skipped:
            self._notes.append(skipped_note(self._skipped))
        self._rng = np.random.default_rng(SEED)
        say(f"upscaling {len(images)} images in FP32")
        self._judge = Judge(model, description, images, recipe.timed_in)

    def run(self, keep: Sequence[str] | None) -> Int8Report:
        """Fit, find what stays in float, learn, judge; more in float until the judgement holds."""
        self._leave_out_broken_kinds()
        fitted = self._fitted_batch()
        wanted = tuple(self._recipe.keep if keep is None else keep)
        decided: dict[str, Decision] = dict.fromkeys(self._named(wanted), FLOAT)
        scheme = self._fit(fitted, decided)
        self._judge.settle(self._graph(scheme))
        layers = layer_errors(
            self._model,
            self._convolutions,
            scheme,
            fitted[::MEASURED_EVERY],
            white=self._white,
            progress=self._say,
        )
        layers = tuple(replace(each, can_twice=each.layer in self._twice_possible) for each in layers)
        learns = self._recipe.learning.steps > 0 and not self._gradientless()
        if keep is None:
            # Others are timed only where some must stay in float: it takes seconds each.
            layers = self._timed(scheme, layers, maybe_free(layers))
            free = dict.fromkeys(free_layers(layers), FLOAT)
            if free:
                decided |= free
                scheme = self._changed(fitted, scheme, decided) if learns else self._fit(fitted, decided)
        learnt: Learnt | None = None
        for tried in range(1 + ROUNDS):
            if learns:
                learnt = self._learn(scheme, learnt)
                scheme = learnt.scheme
            graph = self._graph(scheme)
            comparison = self._judge.compare(graph)
            kept, twice = decided_as(FLOAT, decided), decided_as(TWICE, decided)
            self._say(f"INT8 with {len(kept)} layers in float, {len(twice)} read twice: {comparison.summary()}")
            problems = comparison.violations(self._recipe.budget)
            if not problems:
                read = {each.value for each in self._convolutions if each.name in scheme.weights}
                scheme = replace(scheme, values={name: how for name, how in scheme.values.items() if name in read})
                return Int8Report(
                    graph,
                    self._described,
                    scheme,
                    comparison,
                    self._recipe,
                    kept,
                    twice,
                    layers,
                    learnt,
                    (*self._notes, *self._judge.notes),
                )
            if keep is not None or tried == ROUNDS:
                break
            layers = self._timed(scheme, layers, worth_timing(layers))
            decided |= next_decisions(layers, decided, share_to_go(comparison, self._recipe.budget) * STEP)
            if all(decided.get(each.layer) == FLOAT for each in layers):
                break
            scheme = self._changed(fitted, scheme, decided) if learns else self._fit(fitted, decided)
        raise self._failure(problems, comparison, layers, kept, forced=keep is not None)

    @property
    def _twice_possible(self) -> set[str]:
        """The convolutions that may read twice, where the recipe says so. A picture's codes are exact already."""
        if not self._recipe.read_twice:
            return set()
        image = self._model.graph.input[0].name
        return {each.name for each in self._convolutions if each.groups == 1 and each.value != image}

    def _changed(self, fitted: NDArray[np.float32], scheme: Scheme, decided: Mapping[str, Decision]) -> Scheme:
        """The scheme as decided; what is to read twice now is fitted for it, all else stays as it was learnt."""
        scheme = without(scheme, decided_as(FLOAT, decided))
        new = [name for name in decided_as(TWICE, decided) if scheme.weights[name].readings == 1]
        return self._fit(fitted, decided, start=without(scheme, new)) if new else scheme

    def _fit(self, fitted: NDArray[np.float32], decided: Mapping[str, Decision], start: Scheme | None = None) -> Scheme:
        pixels = self._description.value_range / 255
        scheme = reconstruct(
            self._model,
            self._convolutions,
            fitted,
            keep=decided_as(FLOAT, decided),
            twice=decided_as(TWICE, decided),
            start=start,
            signs=self._recipe.activations,
            exact_input=ActivationCodes(pixels, 0) if self._recipe.activations == "unsigned" else None,
            progress=self._say,
        )
        return replace(scheme, skipped=self._skipped)

    def _timed(
        self, scheme: Scheme, layers: Sequence[Sensitivity], wanted: Sequence[Sensitivity]
    ) -> tuple[Sensitivity, ...]:
        """The layers, those wanted with what they take more in float where the engine is here to tell."""
        backend, wanted = self._judge.engine, [each for each in wanted if each.layer in scheme.weights]
        if not backend:
            note = "what a layer costs in float is guessed from its multiply-adds"
            self._notes += [] if note in self._notes else [note]
            return tuple(layers)
        timed = with_times(self._model, scheme, wanted, self._description, backend, progress=self._say)
        found = {each.layer: each for each in timed}
        network_ms = next((each.network_ms for each in (*timed, *layers) if each.network_ms is not None), None)
        return tuple(found.get(each.layer, replace(each, network_ms=network_ms)) for each in layers)

    def _gradientless(self) -> bool:
        operators = unlearnable(self._model)
        if operators and not any("not learnt" in note for note in self._notes):
            self._notes.append(f"rounding is fitted by layers, not learnt: no gradient for {', '.join(operators)}")
        return bool(operators)

    def _learn(self, scheme: Scheme, before: Learnt | None) -> Learnt:
        learning = self._recipe.learning
        steps = learning.steps if before is None else math.ceil(learning.steps * ROUND_SHARE)
        learnt = learn(
            self._model,
            self._convolutions,
            scheme,
            lambda: self._batch(learning.crops, learning.side),
            steps=steps,
            white=self._white,
            progress=self._say,
        )
        return (
            learnt if before is None else replace(learnt, before_db=before.before_db, steps=before.steps + learnt.steps)
        )

    def _batch(self, count: int, side: int) -> NDArray[np.float32]:
        """Crops, (N, 3, side, side) in the network's range."""
        return self._planes(self._pictures.crops(self._rng, count, self._side(side)))

    def _side(self, side: int) -> int:
        """The same, or the next that the network takes."""
        multiple, least = self._description.size_multiple, self._description.min_size
        return -(-max(side, least) // multiple) * multiple

    def _planes(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 3) bytes as the network takes them."""
        if self._description.color_order == "BGR":
            crops = crops[..., ::-1]
        planes = np.ascontiguousarray(crops.transpose(0, 3, 1, 2)).astype(np.float32)
        return np.asarray(planes * np.float32(self._white / 255), np.float32)

    def _leave_out_broken_kinds(self) -> None:
        """A kind of picture on most of which activations grow far beyond photographs' is one that the network is not
        made for: codes for it would be too coarse for all others."""
        side = self._side(FITTED_SIDE)
        photographs = self._peaks(self._planes(self._pictures.crops_of(None, self._rng, KIND_CROPS, side)))
        self._largest = {name: max(float(peaks.max()), TINY) for name, peaks in photographs.items()}
        for kind in self._pictures.shares:
            growth = self._growth(self._planes(self._pictures.crops_of(kind, self._rng, KIND_CROPS, side)))
            if np.median(growth) > KIND_GROWTH:
                self._pictures = self._pictures.without(kind)
                self._notes.append(
                    f"not calibrated on {kind}: activations grow there to {growth.max():.0f} times photographs'"
                )

    def _growth(self, batch: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,): each crop's largest activation by photographs', at the convolution where that is the most."""
        growth: NDArray[np.float64] = np.max(
            [peaks / self._largest[name] for name, peaks in self._peaks(batch).items()], axis=0
        )
        return growth

    def _peaks(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """The largest magnitude of what each convolution reads, (N,)."""
        import torch

        found: dict[str, NDArray[np.float64]] = {}

        def noted(
            node: onnx.NodeProto, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
        ) -> torch.Tensor:
            found[node.name] = x.abs().amax((1, 2, 3)).numpy().astype(np.float64)
            return convolution(node, x, weight, bias)

        with torch.no_grad():
            TorchGraph(self._model)(torch.from_numpy(batch), noted)
        return found

    def _broken(self, batch: NDArray[np.float32]) -> NDArray[np.bool_]:
        import torch

        with torch.no_grad():
            outputs = TorchGraph(self._model)(torch.from_numpy(batch)).numpy()
        return breaks_down(outputs / self._white)

    def _fitted_batch(self) -> NDArray[np.float32]:
        """Of all kinds, without those on which the float network breaks down or activations grow beyond photographs'.

        Raises CalibrationError where none is left.
        """
        batch = self._planes(self._pictures.spread_crops(self._rng, FITTED_CROPS, self._side(FITTED_SIDE)))
        batch = batch[~self._broken(batch) & (self._growth(batch) <= KIND_GROWTH)]
        if not len(batch):
            raise CalibrationError(
                f"{self._description.title} makes no picture of any image to calibrate on: its output lies far outside "
                "black and white",
                hint="is its value range right? --value-range 255 says that white is 255",
            )
        return batch

    def _graph(self, scheme: Scheme) -> onnx.ModelProto:
        graph = quantized_graph(self._model, scheme)
        onnx.helper.set_model_props(graph, {**_metadata(graph), **self._described.to_metadata()})
        try:
            onnx.checker.check_model(graph, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
            raise ExportError(f"the INT8 graph is not valid ONNX: {str(exc).strip().splitlines()[0]}") from exc
        return graph

    def _named(self, patterns: Sequence[str]) -> tuple[str, ...]:
        """The convolutions that names and patterns mean, by node, by weight or by both. Raises ExportError."""
        nodes = nodes_to_keep(layers_of(self._model.graph), patterns)
        return tuple(conv.name for conv in self._convolutions if conv.name in nodes)

    def _failure(
        self,
        problems: Sequence[str],
        comparison: Comparison,
        layers: Sequence[Sensitivity],
        kept: Collection[str],
        *,
        forced: bool,
    ) -> VerificationError:
        left = [each for each in layers if each.layer not in kept]
        shares = error_shares(left)
        worst = sorted(left, key=lambda each: -each.error)[:NAMED]
        named = ", ".join(f"{each.layer} ({shares[each.layer]:.0%} of the error)" for each in worst)
        hint = f"allow more with --budget-db, or keep {','.join(each.layer for each in worst[:2])} too with --keep"
        return VerificationError(
            f"INT8 is outside its budget: {'; '.join(problems)}. Measured: {comparison.summary()}. "
            f"In float: {', '.join(kept) or 'no layer'}. Worst layers: {named}",
            hint=hint if forced else "allow more with --budget-db, or calibrate on pictures of the kind it is for",
        )


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props if entry.key != METADATA_KEY}
