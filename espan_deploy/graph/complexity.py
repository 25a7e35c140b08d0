"""What a graph costs, by the field's conventions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx import shape_inference

from espan_deploy.errors import ExportError

REPORT_SIZE = 256
"""Height and width at which the challenge reports count multiply-adds (their "FLOPs")."""

Shape = tuple[int, ...]

MIN_PARAMETER_RANK = 1
"""Scalars are constants of the formula (the 1/2 of an attention), not parameters."""


@dataclass(frozen=True)
class LayerCost:
    """One convolution or matrix product. macs: multiply-adds. activations: values it writes."""

    name: str
    op_type: str
    macs: int
    activations: int
    parameters: int


@dataclass(frozen=True)
class Complexity:
    """Of one image of height x width.

    parameters: numbers learnt. multiply_adds: of convolutions and matrix products, bias not counted (fvcore's
    convention, and the reports'). activations: values written by them. convolutions: how many there are.
    """

    height: int
    width: int
    parameters: int
    multiply_adds: int
    activations: int
    convolutions: int
    layers: tuple[LayerCost, ...]


def complexity(model: ir.Model, height: int = REPORT_SIZE, width: int = REPORT_SIZE) -> Complexity:
    """Count a float32 NCHW graph's cost for one image.

    Raises ExportError where the size of a convolution's output cannot be inferred.
    """
    shapes = infer_shapes(model, height, width)
    layers = tuple(_layer_cost(node, shapes) for node in model.graph if node.op_type in _COUNTED)
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
        multiply_adds=sum(layer.macs for layer in layers),
        activations=sum(layer.activations for layer in layers),
        convolutions=sum(layer.op_type == "Conv" for layer in layers),
        layers=layers,
    )


def infer_shapes(model: ir.Model, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """The shape of every value for one image of this size, where it can be inferred."""
    fixed = model.clone()
    for value in fixed.graph.inputs:
        if value.shape is None or len(value.shape) != 4:
            raise ExportError(f"the graph's input {value.name} is not (N, C, H, W)")
        value.shape = ir.Shape([1, value.shape[1], height, width])
    for node in fixed.graph:
        for output in node.outputs:
            output.shape = None
    proto = shape_inference.infer_shapes(ir.to_proto(fixed), data_prop=True)
    shapes: dict[str, tuple[int, ...]] = {
        value.name: tuple(value.const_value.shape.numpy())
        for value in model.graph.initializers.values()
        if value.name is not None and value.const_value is not None
    }
    for info in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[info.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _layer_cost(node: ir.Node, shapes: dict[str, tuple[int, ...]]) -> LayerCost:
    inputs = [value.name for value in node.inputs if value is not None]
    output = node.outputs[0].name
    known = [shapes.get(name or "") for name in (*inputs[:2], output)]
    if any(shape is None for shape in known):
        raise ExportError(f"the size of {node.op_type} {node.name} cannot be inferred, so its cost cannot be counted")
    first, second, out = (shape for shape in known if shape is not None)
    macs = _COUNTED[node.op_type](first, second, out)
    constants = [v.const_value.size for v in node.inputs if v is not None and v.const_value is not None]
    return LayerCost(node.name or output or "", node.op_type, macs, math.prod(out), sum(constants))


_NORMALISING = ("Sub", "Add", "Mul", "Div")
"""What these do to the image itself, with its mean and range, is agreed on and not learnt."""

_COUNTED: dict[str, Callable[[Shape, Shape, Shape], int]] = {
    "Conv": lambda _x, weight, out: math.prod(out) * math.prod(weight[1:]),
    "ConvTranspose": lambda x, weight, _out: math.prod(x) // x[1] * math.prod(weight),
    "MatMul": lambda a, _b, out: math.prod(out) * a[-1],
    "Gemm": lambda a, _b, out: math.prod(a) * out[1],
}
"""Multiply-adds, from the shapes of the two factors and of the product."""
