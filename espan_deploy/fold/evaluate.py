"""Running parts of a graph in float64."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from espan_deploy.errors import FoldError
from espan_deploy.fold.algebra import convolve
from espan_deploy.graph.kinds import Kind, classify

Known = dict[ir.Value, NDArray[Any]]

MAX_CONSTANT_BYTES = 1 << 28
"""A constant larger than this is left to the runtime to compute: it would only swell the file."""


SYMBOLIC_SIZE = re.compile(r"(\w+)(?: ([+-]) (\d+))?")
"""How exporters write a size: ``height``, ``height + 2``."""


@dataclass(frozen=True)
class Sizes:
    """How large feature maps are that a region reads the shape of, but not the values.

    symbols: what each symbol in the graph's shapes stands for. otherwise: batch, height and width where there is none.
    """

    symbols: Mapping[str, int]
    otherwise: tuple[int, int, int]

    @classmethod
    def of(cls, known: Known) -> Sizes:
        """The sizes under which these feature maps have their shapes."""
        symbols: dict[str, int] = {}
        for value, array in known.items():
            for dim, size in zip(value.shape or (), array.shape, strict=False):
                if (parsed := _parsed(dim)) is not None:
                    symbols.setdefault(parsed[0], size - parsed[1])
        batch, _, height, width = next(iter(known.values())).shape
        return cls(symbols, (batch, height, width))

    def shape_of(self, value: ir.Value | None) -> NDArray[np.int64]:
        """Raises FoldError where the value is no feature map."""
        if value is None or value.shape is None or len(value.shape) != 4 or not isinstance(value.shape[1], int):
            raise FoldError(f"the shape of {None if value is None else value.name} is needed, and not known")
        otherwise = (self.otherwise[0], value.shape[1], *self.otherwise[1:])
        shape = list(otherwise)
        for axis, dim in enumerate(value.shape):
            if (parsed := _parsed(dim)) is not None and parsed[0] in self.symbols:
                shape[axis] = self.symbols[parsed[0]] + parsed[1]
        return np.array(shape, np.int64)


def _parsed(dim: int | ir.SymbolicDim) -> tuple[str, int] | None:
    """``height + 2`` as its symbol and what is added to it; None for numbers and longer formulas."""
    match = None if isinstance(dim, int) or dim.value is None else SYMBOLIC_SIZE.fullmatch(dim.value)
    if match is None:
        return None
    return match[1], int(f"{match[2] or '+'}{match[3] or 0}")


class Evaluator:
    """Evaluates nodes of one graph whose floats are float64; constants are read, or computed, once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._opsets = dict(graph.opset_imports)
        self._runners: dict[tuple[ir.Node, tuple[str, ...]], ReferenceEvaluator] = {}
        self._constants: Known = {}

    def value(self, value: ir.Value, known: Known, sizes: Sizes | None = None) -> NDArray[Any]:
        """The array of a value, computing what is missing from ``known``, which gains all that was computed.

        sizes: what the shape of a feature map is taken to be where the map itself is not known.
        Raises FoldError where a node fails or an input is neither known nor computable.
        """
        pending = [value]
        while pending:
            wanted = pending[-1]
            if wanted in known:
                pending.pop()
                continue
            if wanted.const_value is not None:
                known[wanted] = self._constant(wanted)
                continue
            node = wanted.producer()
            if node is None:
                raise FoldError(f"{wanted.name} is needed, but is an input of the graph")
            if node.op_type == "Shape" and sizes is not None and node.inputs[0] not in known:
                known[wanted] = _assumed_shape(node, sizes)
                continue
            missing = [v for v in node.inputs if v is not None and v not in known]
            if missing:
                pending.extend(missing)
                continue
            for output, array in zip(node.outputs, self._run(node, known), strict=True):
                known[output] = array
        return known[value]

    def _constant(self, value: ir.Value) -> NDArray[Any]:
        if value not in self._constants:
            assert value.const_value is not None
            self._constants[value] = value.const_value.numpy()
        return self._constants[value]

    def _run(self, node: ir.Node, known: Mapping[ir.Value, NDArray[Any]]) -> list[NDArray[Any]]:
        inputs = [None if v is None else known[v] for v in node.inputs]
        feeds = {v.name: x for v, x in zip(node.inputs, inputs, strict=True) if v is not None and v.name is not None}
        key = (node, tuple(feeds))
        try:
            if node.op_type == "Conv" and (fast := _convolve_node(node, inputs)) is not None:
                return [fast]
            if key not in self._runners:
                self._runners[key] = ReferenceEvaluator(ir.to_proto(node), opsets=self._opsets)
            return list(self._runners[key].run(None, feeds))
        except Exception as exc:  # the reference evaluator raises whatever NumPy does
            raise FoldError(f"{node.op_type} {node.name} could not be evaluated: {exc}") from exc


def _assumed_shape(node: ir.Node, sizes: Sizes) -> NDArray[np.int64]:
    """What a Shape node gives for a feature map that is not known."""
    start, end = (node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end"))
    return sizes.shape_of(node.inputs[0])[start:end]


def _convolve_node(node: ir.Node, inputs: list[NDArray[Any] | None]) -> NDArray[Any] | None:
    """A 2-D convolution by our own float64 routine, or None where the reference must do it."""
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    assert x is not None
    assert weight is not None
    attributes = node.attributes
    if weight.ndim != 4 or ("auto_pad" in attributes and attributes["auto_pad"].as_string() not in ("", "NOTSET")):
        return None
    strides, dilation = (
        (ints[0], ints[1]) if (ints := _ints(attributes.get(name))) else (1, 1) for name in ("strides", "dilations")
    )
    pads = (ints[0], ints[1], ints[2], ints[3]) if (ints := _ints(attributes.get("pads"))) else (0, 0, 0, 0)
    groups = attributes["group"].as_int() if "group" in attributes else 1
    out = convolve(x, weight, pads=pads, dilation=dilation, groups=groups, strides=strides)
    return out if bias is None else out + bias[:, None, None]


def _ints(attribute: ir.Attr | None) -> tuple[int, ...]:
    return () if attribute is None else tuple(attribute.as_ints())


def fold_constants(graph: ir.Graph) -> None:
    """Compute, in place, what depends on constants alone: weights recomputed in forward, reshaped, multiplied."""
    kinds = classify(graph)
    evaluator = Evaluator(graph)
    known: Known = {}
    outputs = set(graph.outputs)
    for node in list(graph):
        if any(kinds[output] != Kind.CONSTANT for output in node.outputs):
            continue
        for output in node.outputs:
            array = evaluator.value(output, known)
            if not isinstance(array, np.ndarray):
                array = np.asarray(array)
                known[output] = array
            if array.nbytes > MAX_CONSTANT_BYTES or output in outputs or not output.uses():
                continue
            constant = initializer(graph, array, f"{output.name}.folded")
            output.replace_all_uses_with(constant)


def initializer(graph: ir.Graph, array: NDArray[Any], name: str) -> ir.Value:
    """A new constant of the graph, under this name or the next free one."""
    unique, count = name, 0
    while unique in graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=unique),
    )
    graph.register_initializer(value)
    return value


def widen(model: ir.Model) -> ir.Model:
    """A copy of a float32 model that computes in float64."""
    return _retyped(model, ir.DataType.FLOAT, ir.DataType.DOUBLE)


def narrow(model: ir.Model) -> ir.Model:
    """A copy of a float64 model that computes in float32: each weight is rounded once."""
    return _retyped(model, ir.DataType.DOUBLE, ir.DataType.FLOAT)


def _retyped(model: ir.Model, source: ir.DataType, target: ir.DataType) -> ir.Model:
    """A copy of the model, subgraphs included, with every tensor and cast of one float type in the other."""
    model = model.clone()
    dtype = target.numpy()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in [*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)]:
            if value.dtype == source:
                value.type = ir.TensorType(target)
            if value.const_value is not None and value.const_value.dtype == source:
                value.const_value = ir.tensor(value.const_value.numpy().astype(dtype), name=value.name)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == source:
                    retyped = attribute.as_tensor().numpy().astype(dtype)
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(retyped))
                elif node.op_type == "Constant" and name in ("value_float", "value_floats"):
                    numbers = attribute.as_float() if name == "value_float" else attribute.as_floats()
                    del node.attributes[name]
                    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.asarray(numbers, dtype)))
            if node.op_type == "Cast" and node.attributes["to"].as_int() == source:
                node.attributes["to"] = ir.AttrInt64("to", int(target))
    return model
