"""FP32 graph -> strongly typed FP16 graph: the precision stands in the graph's own types, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper

from espan_deploy.backends.model import INT8
from espan_deploy.description import METADATA_KEY, description_from_metadata
from espan_deploy.errors import ExportError
from espan_deploy.graph.quantised import DEQUANTISE, QUANTISE
from espan_deploy.precision.bytes_in import rescale_byte_fed_convolutions
from espan_deploy.precision.choices import kin_of_choices
from espan_deploy.precision.layers import layers_of, name_nodes, nodes_to_keep
from espan_deploy.precision.sums import kin_of_sums

HALF_MAX = float(np.finfo(np.float16).max)
HALF_TINY = float(np.finfo(np.float16).tiny)
"""The smallest normal FP16 value: below it every halving costs a bit."""

FP32_OPS = {
    "GlobalAveragePool": "a sum over the image",
    "GroupNormalization": "a sum over the image",
    "InstanceNormalization": "a sum over the image",
    "LayerNormalization": "a sum of squares",
    "ReduceL1": "a sum over the image",
    "ReduceL2": "a sum of squares",
    "ReduceLogSumExp": "a sum of exponentials",
    "ReduceMean": "a sum over the image",
    "ReduceSum": "a sum over the image",
    "ReduceSumSquare": "a sum of squares",
}
"""Operators kept in FP32 whatever the model, with the reason: FP16 ends at 65504."""


@dataclass(frozen=True)
class WeightLoss:
    """What FP16 does to one constant: how many of its values overflow, vanish or turn subnormal.

    relative_error: root of the squared error's sum over that of the squared values.
    """

    name: str
    values: int
    overflowed: int
    vanished: int
    subnormal: int
    relative_error: float


@dataclass(frozen=True)
class HalfResult:
    """An FP16 graph and what became of it.

    model: strongly typed; its description says precision "fp16", or "int8" as before.
    half_nodes: how many nodes compute in FP16.
    fp32_nodes: node -> why it still computes in FP32.
    weights: the constants that lose something: overflow, underflow.
    """

    model: onnx.ModelProto
    half_nodes: int
    fp32_nodes: dict[str, str]
    weights: tuple[WeightLoss, ...]

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return {
            "half_nodes": self.half_nodes,
            "fp32_nodes": self.fp32_nodes,
            "weights": [asdict(weight) for weight in self.weights],
        }


def to_half(model: onnx.ModelProto, *, keep_fp32: Iterable[str] = ()) -> HalfResult:
    """Convert a float32 model, its pixels already as they are to be, to FP16.

    Inputs and outputs keep their types: casts stand at the ends where those are float32. What does not depend on
    the image (sizes computed in floating point) stays FP32, as do FP32_OPS and what belongs to them (see ``sums``),
    what a choice is made from (``choices``), operators that know no FP16, and layers whose constants overflow. What a
    graph in INT8 has in codes stays in codes.

    keep_fp32: names or patterns of layers or nodes (see ``layers``) to keep in FP32, with casts around them.
    Raises ExportError for an unknown name, or a graph whose types cannot be inferred.
    """
    result = onnx.ModelProto()
    result.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
    graph = result.graph
    del graph.value_info[:]
    lift_constants(graph)
    name_nodes(graph)
    kept = nodes_to_keep(layers_of(graph), keep_fp32)
    rescale_byte_fed_convolutions(graph, kept)
    name_nodes(graph)
    conversion = _Conversion(result, kept)
    conversion.run()
    del graph.value_info[:]
    _update_description(result)
    _check(result)
    return HalfResult(result, conversion.half_nodes, conversion.fp32_nodes, tuple(conversion.losses))


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value of a graph, by inference. Raises ExportError where one is not known."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as exc:
        raise ExportError(f"the model's types cannot be inferred: {exc}") from exc
    graph = inferred.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    missing = [name for node in graph.node for name in node.output if name and not types.get(name)]
    if missing:
        raise ExportError(f"the type of {missing[0]!r} is not known, so it cannot be turned to FP16")
    return types


def weight_loss(name: str, values: NDArray[np.float32]) -> WeightLoss:
    """What FP16 does to these values."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16).astype(np.float64)
    exact = values.astype(np.float64)
    overflowed = int(np.count_nonzero(np.isinf(rounded) & np.isfinite(exact)))
    finite = np.isfinite(rounded) & np.isfinite(exact)
    power = float(np.square(exact[finite]).sum())
    error = float(np.square((rounded - exact)[finite]).sum())
    small = (np.abs(exact) < HALF_TINY) & (exact != 0)
    return WeightLoss(
        name=name,
        values=int(values.size),
        overflowed=overflowed,
        vanished=int(np.count_nonzero(small & (rounded == 0))),
        subnormal=int(np.count_nonzero(small & (rounded != 0))),
        relative_error=(error / power) ** 0.5 if power else 0.0,
    )


def lift_constants(graph: onnx.GraphProto) -> None:
    """Constant nodes with a tensor become initializers: one kind of constant is enough."""
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        attribute = node.attribute[0]
        if attribute.name == "value":
            array = numpy_helper.to_array(attribute.t)
        elif attribute.name in ("value_float", "value_floats"):
            array = np.array(helper.get_attribute_value(attribute), np.float32)
        elif attribute.name in ("value_int", "value_ints"):
            array = np.array(helper.get_attribute_value(attribute), np.int64)
        else:
            continue
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        del graph.node[index]


class _Conversion:
    """One walk through the graph, in its order; values exist as "half" or "full", and as both where both are read."""

    def __init__(self, model: onnx.ModelProto, kept: set[str]) -> None:
        self.graph = model.graph
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        self.kept = kept
        self.types = value_types(model)
        self.new_types = dict(self.types)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.on_image = self._image_values()
        self.kin = kin_of_sums(self.graph.node, self.constants, self.on_image, FP32_OPS)
        self.kin |= kin_of_choices(self.graph.node, self.on_image)
        self.names: dict[tuple[str, bool], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.new_constants: dict[str, onnx.TensorProto] = {}
        self.used: set[str] = set()
        self.half_nodes = 0
        self.fp32_nodes: dict[str, str] = {}
        self.losses: list[WeightLoss] = []

    def run(self) -> None:
        outputs = {value.name for value in self.graph.output}
        for value in (*self.graph.input, *self.graph.initializer):
            self.names[value.name, False] = value.name
        for node in list(self.graph.node):
            self._convert(node, outputs)
        self._end_outputs()
        self._drop_empty_casts()
        constants = [tensor for tensor in self.graph.initializer if tensor.name in self.used]
        del self.graph.initializer[:], self.graph.node[:]
        self.graph.initializer.extend([*constants, *self.new_constants.values()])
        self.graph.node.extend(self.nodes)

    def _image_values(self) -> set[str]:
        """Values that depend on the image's pixels, not only on its size."""
        values = {value.name for value in self.graph.input if value.name not in self.constants}
        for node in self.graph.node:
            if node.op_type not in ("Shape", "Size") and any(name in values for name in node.input):
                values.update(node.output)
        return values

    def _is_float(self, name: str) -> bool:
        return bool(name) and self.types.get(name) == TensorProto.FLOAT

    def _convert(self, node: onnx.NodeProto, outputs: set[str]) -> None:
        floats = [name for name in (*node.input, *node.output) if self._is_float(name)]
        allowed = self._half_inputs(node)
        reason = self._reason_for_full(node, allowed)
        half = bool(floats) and not reason
        if floats and not half:
            self.fp32_nodes[node.name] = reason
        self.half_nodes += half
        for index, name in enumerate(node.input):
            if name:
                node.input[index] = self._read(name, half and allowed is not None and allowed[index])
        for index, name in enumerate(node.output):
            if half and self._is_float(name):
                if name in outputs:
                    node.output[index] = f"{name}_half"
                self.names[name, True] = node.output[index]
                self.new_types[node.output[index]] = TensorProto.FLOAT16
            else:
                self.names[name, False] = name
        if half and node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        self.nodes.append(node)

    def _half_inputs(self, node: onnx.NodeProto) -> list[bool] | None:
        """Which inputs may be FP16; None where the operator, or one of its float outputs, may not be."""
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        except onnx.defs.SchemaError:
            return None
        constraints = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}

        def takes_half(formals: Any, index: int) -> bool:
            formal = formals[min(index, len(formals) - 1)]
            return "tensor(float16)" in constraints.get(formal.type_str, {formal.type_str})

        for index, name in enumerate(node.output):
            if self._is_float(name) and not takes_half(schema.outputs, index):
                return None
        return [takes_half(schema.inputs, index) for index in range(len(node.input))]

    def _reason_for_full(self, node: onnx.NodeProto, allowed: list[bool] | None) -> str:
        """Why a node must compute in FP32, or "" where it need not."""
        reasons = {
            "its result depends on the image's size alone": self.on_image.isdisjoint(node.output)
            and node.op_type != DEQUANTISE,
            FP32_OPS.get(node.op_type, ""): node.op_type in FP32_OPS,
            self.kin.get(node.name, ""): node.name in self.kin,
            "it holds a graph of its own": any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute),
            f"{node.op_type} knows no FP16": allowed is None
            or any(
                self._is_float(name) and name in self.on_image and not half
                for name, half in zip(node.input, allowed, strict=True)
            ),
            "kept on request": node.name in self.kept,
        }
        found = next((reason for reason, holds in reasons.items() if holds), "")
        return found or self._overflow(node) or self._small_scale(node)

    def _overflow(self, node: onnx.NodeProto) -> str:
        """Which of a node's constants overflow, or ""."""
        for name in node.input:
            if name in self.constants and self._is_float(name):
                loss = weight_loss(name, numpy_helper.to_array(self.constants[name]))
                if loss.overflowed:
                    self.losses.append(loss)
                    return f"{loss.overflowed} of {loss.values} values of {name} overflow FP16"
        return ""

    def _small_scale(self, node: onnx.NodeProto) -> str:
        """Which scale of codes FP16 would round too far, or ""."""
        scale = node.input[1] if node.op_type in (QUANTISE, DEQUANTISE) else ""
        if scale in self.constants and np.abs(numpy_helper.to_array(self.constants[scale])).min() < HALF_TINY:
            return f"{scale} is too small for FP16"
        return ""

    def _read(self, name: str, half: bool) -> str:
        """The name under which a value can be read in the wanted type, casting it once where needed."""
        if not self._is_float(name):
            self.used.add(name)
            return name
        key = (name, half)
        if key not in self.names:
            if name in self.constants:
                self.names[key] = self._half_constant(name)
            else:
                source = self.names[name, not half]
                target = f"{name}_{'half' if half else 'full'}"
                wanted = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=wanted))
                self.new_types[target] = wanted
                self.names[key] = target
        self.used.add(self.names[key])
        return self.names[key]

    def _half_constant(self, name: str) -> str:
        values = numpy_helper.to_array(self.constants[name])
        loss = weight_loss(name, values)
        if loss.vanished or loss.subnormal:
            self.losses.append(loss)
        half = f"{name}_half"
        self.new_constants[half] = numpy_helper.from_array(values.astype(np.float16), half)
        self.new_types[half] = TensorProto.FLOAT16
        return half

    def _end_outputs(self) -> None:
        for value in self.graph.output:
            if self._is_float(value.name) and (value.name, False) not in self.names:
                source = self.names[value.name, True]
                self.nodes.append(
                    helper.make_node("Cast", [source], [value.name], name=f"{value.name}_cast", to=TensorProto.FLOAT)
                )
                self.new_types[value.name] = TensorProto.FLOAT

    def _drop_empty_casts(self) -> None:
        """Remove casts to the type a value has already: those that float16 pixels brought along."""
        inputs = {value.name for value in self.graph.input}
        outputs = {value.name for value in self.graph.output}
        kept: list[onnx.NodeProto] = []
        renamed: dict[str, str] = {}
        for node in self.nodes:
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)
            to = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
            if to is None or to != self.new_types.get(node.input[0]):
                kept.append(node)
            elif node.output[0] not in outputs:
                renamed[node.output[0]] = node.input[0]
            elif node.input[0] in inputs or node.input[0] in outputs:
                kept.append(node)
            else:
                _rename_value(kept, node.input[0], node.output[0])
        self.nodes = kept


def _rename_value(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def _update_description(model: onnx.ModelProto) -> None:
    description = description_from_metadata({entry.key: entry.value for entry in model.metadata_props})
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY and description is not None:
            precision = description.precision if description.precision == INT8 else "fp16"
            entry.value = replace(description, precision=precision).to_metadata()[METADATA_KEY]


def _check(model: onnx.ModelProto) -> None:
    """Hold the result to its own rules: valid ONNX, every type consistent."""
    try:
        onnx.checker.check_model(model)
        value_types(model)
    except onnx.checker.ValidationError as exc:
        operators = json.dumps(sorted({node.op_type for node in model.graph.node}))
        raise ExportError(f"the FP16 graph does not hold together: {exc}", hint=f"operators: {operators}") from exc
