"""A graph's sizes: what depends on the input's height and width alone, evaluated where it is needed.

ONNX's own shape inference gives up where a graph computes with sizes: padding to a multiple, resizing to a computed
size, cutting into windows. Here nothing is deduced: for one height and width all such values are numbers, and node
after node is asked what it makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TypeProto, defs, shape_inference
from onnx.reference import ReferenceEvaluator

from espan_deploy.errors import ExportError
from espan_deploy.graph.kinds import Kind, Kinds, classify

Shape = tuple[int, ...]

RGB = 3
"""Channels, where the graph does not say."""

TOLD_ELEMENTS = 64
"""An operator whose result's shape depends on an input's values reads a list of sizes, paddings or scales: not more."""


class SizedGraph:
    """A lowered graph (N, C, H, W) -> ..., whose sizes can be asked for. The graph must not change meanwhile.

    model: the graph. kinds: what each value depends on.
    Raises ExportError where the input is not (N, C, H, W).
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.kinds: Kinds = classify(model.graph)
        self.input = model.graph.inputs[0]
        if self.input.shape is None or len(self.input.shape) != 4:
            raise ExportError(f"the graph's input {self.input.name} is not (N, C, H, W)")
        self._protos: dict[ir.Node, onnx.NodeProto] = {}
        self._evaluators: dict[ir.Node, ReferenceEvaluator] = {}
        self._opsets = dict(model.graph.opset_imports)
        self._at: dict[Shape, Sizes] = {}

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The only height and width of the input, where the graph says so."""
        assert self.input.shape is not None
        height, width = self.input.shape[2], self.input.shape[3]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def at(self, height: int, width: int, batch: int = 1) -> Sizes:
        """The sizes inside for images of this size; sizes that the graph fixes stay what they are."""
        assert self.input.shape is not None
        wanted = zip(self.input.shape, (batch, RGB, height, width), strict=True)
        shape = tuple(fixed if isinstance(fixed, int) else free for fixed, free in wanted)
        if shape not in self._at:
            self._at[shape] = Sizes(self, shape)
        return self._at[shape]

    def proto(self, node: ir.Node) -> onnx.NodeProto:
        """A node as onnx's own functions take it."""
        if node not in self._protos:
            self._protos[node] = ir.to_proto(node)
        return self._protos[node]

    def run(self, node: ir.Node, inputs: list[NDArray[Any] | None]) -> list[NDArray[Any]] | None:
        """What a node makes of these arrays, or None where it fails or is not known to onnx's reference."""
        feeds = {v.name: x for v, x in zip(node.inputs, inputs, strict=True) if v is not None and v.name is not None}
        try:
            if node not in self._evaluators:
                self._evaluators[node] = ReferenceEvaluator(self.proto(node), opsets=self._opsets)
            with np.errstate(all="ignore"):  # what comes of an odd size is an answer, too
                return list(self._evaluators[node].run(None, feeds))
        except Exception:
            return None

    def output_types(
        self, node: ir.Node, types: Mapping[str, TypeProto], data: Mapping[str, onnx.TensorProto]
    ) -> Mapping[str, TypeProto]:
        """The types of a node's outputs, as far as onnx can tell."""
        proto = self.proto(node)
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
        try:
            schema = defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)
            return shape_inference.infer_node_outputs(schema, proto, dict(types), dict(data), opset_imports=opsets)
        except (defs.SchemaError, shape_inference.InferenceError, KeyError, RuntimeError, ValueError):
            return {}


class Sizes:
    """What is inside a graph for images of one shape: the shape of every value, and the values that sizes make."""

    def __init__(self, sized: SizedGraph, shape: Shape) -> None:
        self._sized = sized
        self.input_shape = shape
        self._types: dict[str, TypeProto] = {}
        self._values: dict[ir.Value, NDArray[Any] | None] = {}
        self._tell(sized.input, np.float32, shape)
        for node in sized.model.graph:
            self._look_at(node)

    @property
    def output_shape(self) -> Shape | None:
        """The shape of the graph's first output."""
        return self.shape(self._sized.model.graph.outputs[0])

    def shape(self, value: ir.Value | None) -> Shape | None:
        """A value's shape, or None where it depends on pixels, or on what onnx does not know."""
        if value is None:
            return None
        if value.const_value is not None:
            return tuple(int(side) for side in value.const_value.shape.numpy())
        found = self._types.get(value.name or "")
        if found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
            return None
        dims = found.tensor_type.shape.dim
        return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None

    def shapes(self) -> dict[str, Shape]:
        """All shapes that are known, by the values' names."""
        graph = self._sized.model.graph
        values = [*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)]
        known = ((value.name, self.shape(value)) for value in values)
        return {name: shape for name, shape in known if name is not None and shape is not None}

    def value(self, value: ir.Value | None) -> NDArray[Any] | None:
        """The array of what depends on sizes alone, or None where it depends on more or cannot be computed."""
        if value is None:
            return None
        pending = [value]
        while pending:
            wanted = pending[-1]
            if wanted in self._values or self._known_at_once(wanted):
                pending.pop()
                continue
            node = wanted.producer()
            assert node is not None
            missing = [v for v in node.inputs if v is not None and v not in self._values]
            if missing:
                pending.extend(missing)
                continue
            inputs = [None if v is None else self._values[v] for v in node.inputs]
            unknown = any(x is None for v, x in zip(node.inputs, inputs, strict=True) if v is not None)
            results = None if unknown else self._sized.run(node, inputs)
            for index, output in enumerate(node.outputs):
                self._values[output] = None if results is None else np.asarray(results[index])
        return self._values[value]

    def _known_at_once(self, value: ir.Value) -> bool:
        """Take down what needs no evaluation: constants, shapes, and what is unknown for good."""
        node = value.producer()
        if value.const_value is not None:
            self._values[value] = value.const_value.numpy()
        elif node is not None and node.op_type == "Shape":
            shape = self.shape(node.inputs[0])
            start, end = (node.attributes[n].as_int() if n in node.attributes else None for n in ("start", "end"))
            self._values[value] = None if shape is None else np.array(shape, np.int64)[start:end]
        elif node is not None and node.op_type == "Size":
            shape = self.shape(node.inputs[0])
            self._values[value] = None if shape is None else np.array(math.prod(shape), np.int64)
        elif node is None or self._sized.kinds.get(value, Kind.CONSTANT) == Kind.DATA:
            self._values[value] = None
        return value in self._values

    def _look_at(self, node: ir.Node) -> None:
        """Find the types of a node's outputs."""
        types, data = dict(self._types) if _has_subgraph(node) else {}, {}
        for value in node.inputs:
            if value is None or value.name is None:
                continue
            if value.const_value is not None:
                self._tell(value, value.const_value.dtype.numpy(), self.shape(value) or ())
            types[value.name] = self._types.get(value.name) or TypeProto()
            if (told := self._told(node, value)) is not None:
                data[value.name] = onnx.numpy_helper.from_array(told, value.name)
        for name, found in self._sized.output_types(node, types, data).items():
            self._types[name] = found

    def _told(self, node: ir.Node, value: ir.Value) -> NDArray[Any] | None:
        """The values of an input that the shape of the node's result may depend on."""
        shape = self.shape(value)
        if self._sized.kinds.get(value, Kind.CONSTANT) == Kind.DATA or shape is None:
            return None
        if len(shape) > 1 or math.prod(shape) > TOLD_ELEMENTS or node.op_type in _SHAPES_ALONE:
            return None
        return self.value(value)

    def _tell(self, value: ir.Value, dtype: Any, shape: Shape) -> None:
        assert value.name is not None
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._types[value.name] = onnx.helper.make_tensor_type_proto(element, shape)


_SHAPES_ALONE = frozenset(
    {
        *("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Pow", "Cast", "Where", "Concat"),
        *("Clip", "PRelu", "LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"),
    }
)
"""The shape of their result depends on their inputs' shapes, and not on what is in them."""


def _has_subgraph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())
