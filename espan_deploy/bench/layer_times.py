"""What each layer really took, from an engine's own profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from espan_deploy.backends.base import Step
from espan_deploy.bench.costs import Layer

PRODUCTS = ("conv", "matmul", "gemm", "fullyconnected")
"""In the names that engines give to the kernels of what counts as a layer."""


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of a profiled run.

    layers: of each layer, with what the engine fused into it; None where no kernel carries its name. between: of all
    other kernels, by kind, the largest first: activations, sums, copies to another layout. computed_in: by each layer's
    kernel, as :class:`Step` has it.
    """

    layers: tuple[float | None, ...]
    between: dict[str, float]
    computed_in: tuple[str, ...]

    @property
    def total(self) -> float:
        """Of all kernels."""
        return sum(ms for ms in self.layers if ms is not None) + sum(self.between.values())


def layer_times(layers: Sequence[Layer], steps: Sequence[Step]) -> LayerTimes:
    """Give every convolution or product to the layer whose node it computes, and every other kernel to none."""
    index: dict[str, int] = {}
    for i, layer in enumerate(layers):
        for name in layer.names:
            index.setdefault(name, i)
    spent: list[float | None] = [None] * len(layers)
    computed_in = [""] * len(layers)
    between: dict[str, float] = {}
    for step in steps:
        is_product = any(word in step.kind.lower() for word in PRODUCTS)
        found = next((index[name] for name in step.names if is_product and name in index), None)
        if found is None:
            between[step.kind] = between.get(step.kind, 0.0) + step.ms
        else:
            spent[found] = (spent[found] or 0.0) + step.ms
            computed_in[found] = step.computes_in
    return LayerTimes(tuple(spent), dict(sorted(between.items(), key=lambda item: -item[1])), tuple(computed_in))
