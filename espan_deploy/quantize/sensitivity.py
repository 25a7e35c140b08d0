"""What each layer's quantisation costs in error, and what keeping it in float would cost in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from espan_deploy.backends.base import Runner
from espan_deploy.description import ModelDescription
from espan_deploy.precision.gate import Comparison
from espan_deploy.quantize.judge import open_int8
from espan_deploy.quantize.layers import Convolution
from espan_deploy.quantize.reconstruct import through_codes
from espan_deploy.quantize.scheme import Scheme
from espan_deploy.quantize.torch_graph import TorchGraph, convolution
from espan_deploy.quantize.writer import quantized_graph
from espan_deploy.recipes import Budget

if TYPE_CHECKING:
    import torch

TIMED_SIDE = 256
ROUNDS = 9
"""Each layer's network and the one without are timed in turns, this often; the median of the differences counts."""

FLOAT_TIMES, TWICE_TIMES = 2.5, 1.6
"""So much longer a convolution takes in float, and where it reads its input twice, about, by its multiply-adds: ESPAN
in OpenVINO, with VNNI or AMX."""

TWICE_LEFT = 0.4
"""Of a layer's error, what is left where it reads its input twice: 0.3 to 0.45 of the released ESPAN's layers'."""

Decision = Literal["int8", "twice", "float"]
"""How a convolution is computed; "twice" is INT8 whose input is quantised twice, half a step apart."""

TIMED_LAYERS = 12
"""Each is compiled twice, which takes seconds; the released ESPAN's worst 12 of 22 hold nine tenths of the error."""

TRUSTED_WITHIN = 2.0
"""A time measured counts up to so many times more or less than multiply-adds say: the machine may be busy elsewhere."""

FREE_SHARE = 0.02
"""Of the network's time: a layer in float that costs less is not told from one that costs nothing."""

FREE_ERROR = 0.02
"""Of all layers' error: one that holds less gains nothing in float, and many that cost nothing each cost something."""

LEAST_ERROR = 1e-12
"""Of white squared: 120 dB."""

FREE_MULTIPLY_ADDS = 0.03
"""Of the network's: only as small a layer is taken to be free, so that no unlucky timing frees a large one."""


@dataclass(frozen=True)
class Sensitivity:
    """Of one convolution. error: of a typical picture where it alone is quantised, squared, of white. multiply_adds: of
    the network's.

    float_ms, twice_ms: what it takes more in float and where it reads twice, measured; None where it was not timed.
    network_ms: the time of all in INT8; None where the engine is not here. can_twice: whether it may read twice.
    """

    layer: str
    error: float
    multiply_adds: float
    float_ms: float | None = None
    network_ms: float | None = None
    twice_ms: float | None = None
    can_twice: bool = False

    @property
    def cost(self) -> float:
        """Of keeping it in float: milliseconds, or without any the share of multiply-adds."""
        return self._cost(self.float_ms, 1.0)

    @property
    def twice_cost(self) -> float:
        """Of reading twice, in the same unit."""
        return self._cost(self.twice_ms, (TWICE_TIMES - 1) / (FLOAT_TIMES - 1))

    def _cost(self, measured_ms: float | None, share: float) -> float:
        """share: of what float costs, at a guess."""
        if self.network_ms is None:
            return share * self.multiply_adds
        expected = share * (FLOAT_TIMES - 1) * self.multiply_adds * self.network_ms
        if measured_ms is None:
            return expected
        return min(max(measured_ms, expected / TRUSTED_WITHIN), expected * TRUSTED_WITHIN)

    @property
    def free(self) -> bool:
        """Whether it may as well stay in float."""
        if self.float_ms is None or self.network_ms is None:
            return False
        return self.small and self.cost < FREE_SHARE * self.network_ms

    @property
    def small(self) -> bool:
        """Whether it does so little that it may be free."""
        return self.multiply_adds < FREE_MULTIPLY_ADDS


def emulated(scheme: Scheme, only: Collection[str] | None = None) -> Callable[..., torch.Tensor]:
    """What does a Conv node's work as the scheme has it, for ``TorchGraph``. only: names; the others in float."""
    import torch

    names = set(scheme.weights if only is None else only)

    def convolve(
        node: onnx.NodeProto, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if node.name not in names:
            return convolution(node, x, weight, bias)
        how, kernel = scheme.values[node.input[0]], scheme.weights[node.name]
        factors = torch.from_numpy(how.smoothing.astype(np.float32)).view(1, -1, 1, 1)
        scale = torch.from_numpy(kernel.scale.astype(np.float32)).view(-1, 1, 1, 1)
        codes = torch.from_numpy(kernel.codes.astype(np.float32))
        coded = through_codes(x / factors, how.codes, kernel.readings)
        return convolution(node, coded, codes * scale, torch.from_numpy(kernel.bias))

    return convolve


def layer_errors(
    model: onnx.ModelProto,
    convolutions: Sequence[Convolution],
    scheme: Scheme,
    images: NDArray[np.float32],
    *,
    white: float,
    progress: Callable[[str], None],
) -> tuple[Sensitivity, ...]:
    """Of each quantised convolution, in the graph's order. images: (N, 3, H, W) in the network's range."""
    import torch

    graph, batch = TorchGraph(model), torch.from_numpy(images)
    positions: dict[str, int] = {}

    def counted(node: onnx.NodeProto, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        result = convolution(node, x, weight, bias)
        positions[node.name] = result.shape[2] * result.shape[3] * weight.numel()
        return result

    found = []
    with torch.no_grad():
        wanted = graph(batch, counted)
        total = sum(positions.values())
        for index, conv in enumerate(convolutions):
            if conv.name not in scheme.weights:
                continue
            progress(f"measuring layer {index + 1} of {len(convolutions)}: {conv.name}")
            squared = (graph(batch, emulated(scheme, (conv.name,))) - wanted).square().flatten(1).mean(1) / white**2
            found.append(Sensitivity(conv.name, _typical(squared), positions[conv.name] / total))
    return tuple(found)


def _typical(squared: torch.Tensor) -> float:
    """The geometric mean over pictures: a page or a grating, a thousand times farther off, must not decide alone."""
    return float((squared + LEAST_ERROR).log().mean().exp())


def with_times(
    model: onnx.ModelProto,
    scheme: Scheme,
    layers: Sequence[Sensitivity],
    description: ModelDescription,
    backend: str,
    *,
    progress: Callable[[str], None],
) -> tuple[Sensitivity, ...]:
    """The same with what each takes more in float, and where it may read twice, in this backend, one of those that run
    on the CPU."""
    described = replace(description, precision="int8")
    side = -(-TIMED_SIDE // description.size_multiple) * description.size_multiple
    height, width = description.fixed_size or (side, side)
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)

    def opened(tried: Scheme) -> Runner:
        return open_int8(quantized_graph(model, tried), described, backend)

    timed: list[Sensitivity] = []
    if not layers:
        return ()
    with opened(scheme) as all_quantized:
        for index, layer in enumerate(layers):
            progress(f"timing layer {index + 1} of {len(layers)}: {layer.layer}")
            with opened(without(scheme, (layer.layer,))) as one_in_float:
                network_ms, float_ms = _median_ms(all_quantized, one_in_float, image)
            twice_ms = None
            if layer.can_twice and scheme.weights[layer.layer].readings == 1:
                with opened(_read_twice(scheme, layer.layer)) as one_twice:
                    twice_ms = _median_ms(all_quantized, one_twice, image)[1]
            timed.append(replace(layer, float_ms=float_ms, network_ms=network_ms, twice_ms=twice_ms))
    return tuple(timed)


def _read_twice(scheme: Scheme, layer: str) -> Scheme:
    """For its time: the weights are not fitted."""
    once = scheme.weights[layer]
    twice = replace(once, codes=np.tile(once.codes // 2, (1, 2, 1, 1)), readings=2)
    return replace(scheme, weights={**scheme.weights, layer: twice})


def _median_ms(runner: Runner, other: Runner, image: NDArray[np.uint8]) -> tuple[float, float]:
    """What the first takes, and what the other takes more: what disturbs the machine meets two that follow each other
    alike."""
    taken = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        runner.infer(image)
        between = time.perf_counter()
        other.infer(image)
        taken.append((between - start, time.perf_counter() - between))
    # The first of each is slower than all that follow.
    first, second = (np.array(times) * 1000 for times in zip(*taken[1:], strict=True))
    return float(np.median(first)), float(np.median(second - first))


def without(scheme: Scheme, kept: Collection[str]) -> Scheme:
    """The scheme with these convolutions in float."""
    weights = {name: weight for name, weight in scheme.weights.items() if name not in kept}
    return replace(scheme, weights=weights)


def decided_as(how: Decision, decided: Mapping[str, Decision]) -> tuple[str, ...]:
    """The convolutions of which this was decided."""
    return tuple(name for name, decision in decided.items() if decision == how)


def next_decisions(layers: Sequence[Sensitivity], decided: Mapping[str, Decision], share: float) -> dict[str, Decision]:
    """The decisions to change next: those that cost least for the error that they rid of, until this share of what is
    left is gone, to the nearest; at least one. decided: layers that are no longer plainly "int8"."""
    state = {layer.layer: decided.get(layer.layer, "int8") for layer in layers}
    total, gone = sum(_left(layer, state[layer.layer]) for layer in layers), 0.0
    changed: dict[str, Decision] = {}
    while True:
        steps = [step for layer in layers for step in _steps(layer, state[layer.layer])]
        if not steps:
            return changed
        layer, to, less, _ = max(steps, key=lambda step: step[2] / step[3])
        if changed and gone + less / 2 > share * total:
            return changed
        state[layer] = changed[layer] = to
        gone += less


def _steps(layer: Sensitivity, now: Decision) -> Iterator[tuple[str, Decision, float, float]]:
    """What may be decided instead: the layer, the decision, by how much the error falls, and what it costs more."""
    if now == "float":
        return
    spent = layer.twice_cost if now == "twice" else 0.0
    yield layer.layer, "float", _left(layer, now), max(layer.cost - spent, layer.cost / TRUSTED_WITHIN)
    if now == "int8" and layer.can_twice and layer.twice_cost < layer.cost:
        yield layer.layer, "twice", layer.error * (1 - TWICE_LEFT), layer.twice_cost


def _left(layer: Sensitivity, now: Decision) -> float:
    """Its error as it is computed now."""
    return layer.error * {"int8": 1.0, "twice": TWICE_LEFT, "float": 0.0}[now]


def share_to_go(comparison: Comparison, budget: Budget) -> float:
    """Which share of the error must go, at a guess: decibels lost against the truth grow with the squared error."""
    shares = [0.0]
    if comparison.truth_drop_db is not None and comparison.truth_drop_db > budget.max_truth_drop_db:
        shares.append(1 - budget.max_truth_drop_db / comparison.truth_drop_db)
    if comparison.psnr_db < budget.min_psnr_db:
        shares.append(1 - 10 ** ((comparison.psnr_db - budget.min_psnr_db) / 10))
    return max(shares)


def worth_timing(layers: Sequence[Sensitivity]) -> tuple[Sensitivity, ...]:
    """Those not timed yet among the TIMED_LAYERS with the largest errors: what costs what the others do is guessed."""
    worst = sorted(layers, key=lambda layer: -layer.error)[:TIMED_LAYERS]
    return tuple(layer for layer in worst if layer.float_ms is None)


def maybe_free(layers: Sequence[Sensitivity]) -> tuple[Sensitivity, ...]:
    """Those that may turn out to be free, once they are timed."""
    shares = error_shares(layers)
    return tuple(each for each in layers if each.small and shares[each.layer] >= FREE_ERROR)


def free_layers(layers: Sequence[Sensitivity]) -> tuple[str, ...]:
    """Those that stay in float whatever the budget, since nothing is lost by it."""
    return tuple(each.layer for each in maybe_free(layers) if each.free)


def error_shares(layers: Sequence[Sensitivity]) -> Mapping[str, float]:
    """Layer -> its share of the sum of all layers' errors."""
    total = sum(layer.error for layer in layers) or 1.0
    return {layer.layer: layer.error / total for layer in layers}
