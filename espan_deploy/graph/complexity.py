"""What a graph costs, by the field's conventions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from espan_deploy.graph.sizes import Shape, SizedGraph, Sizes

REPORT_SIZE = 256
"""Height and width at which the challenge reports count multiply-adds (their "FLOPs")."""

MIN_PARAMETER_RANK = 1
"""Scalars are constants of the formula (the 1/2 of an attention), not parameters."""


@dataclass(frozen=True)
class LayerCost:
    """One convolution or matrix product. macs: multiply-adds. activations: values it writes.

    Both are None where its size depends on pixels.
    """

    name: str
    op_type: str
    macs: int | None
    activations: int | None
    parameters: int


@dataclass(frozen=True)
class Complexity:
    """Of one image of height x width.

    parameters: numbers learnt. multiply_adds: of convolutions and matrix products, bias not counted (fvcore's
    convention, and the reports'). activations: values written by them. convolutions: how many there are.
    multiply_adds and activations are None where the size of one of them depends on pixels.
    """

    height: int
    width: int
    parameters: int
    multiply_adds: int | None
    activations: int | None
    convolutions: int
    layers: tuple[LayerCost, ...]


def complexity(graph: SizedGraph, height: int = REPORT_SIZE, width: int = REPORT_SIZE) -> Complexity:
    """Count a float32 NCHW graph's cost for one image."""
    model, sizes = graph.model, graph.at(height, width)
    layers = tuple(_layer_cost(node, sizes) for node in model.graph if node.op_type in _COUNTED)
    image = set(model.graph.inputs)
    parameters = sum(
        value.const_value.size
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype.is_floating_point()
        and len(value.const_value.shape) >= MIN_PARAMETER_RANK
        and not all(node.op_type in _NORMALISING and image & set(node.inputs) for node in value.consumers())
    )
    return Complexity(
        height=height,
        width=width,
        parameters=parameters,
        multiply_adds=_total(layer.macs for layer in layers),
        activations=_total(layer.activations for layer in layers),
        convolutions=sum(layer.op_type == "Conv" for layer in layers),
        layers=layers,
    )


def _total(counts: Iterable[int | None]) -> int | None:
    """Their sum, None where one of them is."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _layer_cost(node: ir.Node, sizes: Sizes) -> LayerCost:
    first, second, out = (sizes.shape(value) for value in (*node.inputs[:2], node.outputs[0]))
    constants = [v.const_value.size for v in node.inputs if v is not None and v.const_value is not None]
    name = node.name or node.outputs[0].name or ""
    if first is None or second is None or out is None:
        return LayerCost(name, node.op_type, None, None, sum(constants))
    macs = _COUNTED[node.op_type](first, second, out)
    return LayerCost(name, node.op_type, macs, math.prod(out), sum(constants))


_NORMALISING = ("Sub", "Add", "Mul", "Div")
"""What these do to the image itself, with its mean and range, is agreed on and not learnt."""

_COUNTED: dict[str, Callable[[Shape, Shape, Shape], int]] = {
    "Conv": lambda _x, weight, out: math.prod(out) * math.prod(weight[1:]),
    "ConvTranspose": lambda x, weight, _out: math.prod(x) // x[1] * math.prod(weight),
    "MatMul": lambda a, _b, out: math.prod(out) * a[-1],
    "Gemm": lambda a, _b, out: math.prod(a) * out[1],
}
"""Multiply-adds, from the shapes of the two factors and of the product."""
