"""Which nodes of a graph are affine in the data that flows through them, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from espan_deploy.graph.kinds import Kind, Kinds

WEIGHT_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"})
"""Operators that multiply data with weights: what a fold can save."""


def barrier(node: ir.Node, kinds: Kinds) -> str:
    """Why this node is not affine and shift-invariant in its data, or "" where it is (the proof has the last word)."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in RULES:
        return f"{node.op_type} is not linear"
    carries_data = [v is not None and kinds.get(v, Kind.CONSTANT) == Kind.DATA for v in node.inputs]
    return RULES[node.op_type](node, carries_data)


Rule = Callable[[ir.Node, list[bool]], str]


def _always(_node: ir.Node, _carries_data: list[bool]) -> str:
    return ""


def _only_first(what: str) -> Rule:
    def rule(node: ir.Node, carries_data: list[bool]) -> str:
        return f"{what} of {node.op_type} depend on the input" if any(carries_data[1:]) else ""

    return rule


def _one_factor(node: ir.Node, carries_data: list[bool]) -> str:
    return f"{node.op_type} of two tensors that both depend on the input" if sum(carries_data) > 1 else ""


def _windowed(node: ir.Node, carries_data: list[bool]) -> str:
    strides = node.attributes.get("strides")
    if strides is not None and any(stride != 1 for stride in strides.as_ints()):
        return f"{node.op_type} of stride {'x'.join(map(str, strides.as_ints()))}"
    return _only_first("the weights")(node, carries_data)


def _normalisation(node: ir.Node, carries_data: list[bool]) -> str:
    training = node.attributes.get("training_mode")
    if training is not None and training.as_int():
        return "BatchNormalization in training mode"
    return _only_first("the statistics")(node, carries_data)


def _where(_node: ir.Node, carries_data: list[bool]) -> str:
    return "Where on a condition that depends on the input" if carries_data[0] else ""


def _scatter(node: ir.Node, carries_data: list[bool]) -> str:
    reduction = node.attributes.get("reduction")
    if reduction is not None and reduction.as_string() not in ("none", "add"):
        return f"{node.op_type} that multiplies or compares"
    return f"{node.op_type} to places that depend on the input" if carries_data[1] else ""


def _cast(node: ir.Node, _carries_data: list[bool]) -> str:
    to = ir.DataType(node.attributes["to"].as_int())
    return "" if to.is_floating_point() else "Cast to an integer"


_INDEXED = ("Slice", "Gather", "Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split", "ReduceSum", "ReduceMean")

RULES: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean", "Neg", "Identity", "Concat", "Transpose", "Flatten"), _always),
    **dict.fromkeys(("Dropout",), _only_first("the settings")),
    **dict.fromkeys(("Mul", "MatMul", "Einsum"), _one_factor),
    **dict.fromkeys(("Gemm",), _one_factor),
    **dict.fromkeys(("Conv", "ConvTranspose", "AveragePool"), _windowed),
    **dict.fromkeys(_INDEXED, _only_first("the indices")),
    "Pad": _only_first("the widths"),
    "Div": _only_first("the divisors"),
    "BatchNormalization": _normalisation,
    "Where": _where,
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "Cast": _cast,
}
"""Affine operators. What is missing here is a barrier; operators that change resolution are left out on purpose."""
