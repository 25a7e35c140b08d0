"""Which nodes of a graph are affine in the data that flows through them, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from espan_deploy.graph.kinds import Kind, Kinds


def barrier(node: ir.Node, kinds: Kinds) -> str:
    """What stops a fold at this node: ``SiLU, which is not linear``, or "" where nothing does.

    A node that passes is affine and shift-invariant by what is known of it; the proof has the last word.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in RULES:
        return f"{node.op_type}, {'which changes the resolution' if node.op_type in RESAMPLING else NOT_LINEAR}"
    of_inputs = [Kind.CONSTANT if v is None else kinds.get(v, Kind.CONSTANT) for v in node.inputs]
    if node.op_type in PLACED and Kind.SHAPE in of_inputs[1:]:
        # Alone on the bench a region does not know how large the whole image was: a crop to that size looks like none.
        return f"{node.op_type}, to places computed from the image's size"
    return RULES[node.op_type](node, [kind == Kind.DATA for kind in of_inputs])


PLACED = frozenset({"Slice", "Gather"})
"""Operators that take pixels from places they are given."""

NOT_LINEAR = "which is not linear"

RESAMPLING = frozenset(
    {"DepthToSpace", "SpaceToDepth", "Resize", "Upsample", "GlobalAveragePool", "GridSample", "CenterCropPad"}
)
"""Linear, but what comes out has another resolution: no stride-1 convolution does that."""

Rule = Callable[[ir.Node, list[bool]], str]


def _always(_node: ir.Node, _carries_data: list[bool]) -> str:
    return ""


def _joined(node: ir.Node, carries_data: list[bool]) -> str:
    """Channels may be joined, places not: on a bench smaller than its shift, a roll looks like none."""
    shape, axis = node.outputs[0].shape, node.attributes["axis"].as_int()
    if sum(carries_data) > 1 and shape is not None and len(shape) == 4 and axis % 4 > 1:
        return "Concat, of rows or columns"
    return ""


def _only_first(what: str) -> Rule:
    def rule(node: ir.Node, carries_data: list[bool]) -> str:
        return f"{node.op_type}, {what} of which depend on the input" if any(carries_data[1:]) else ""

    return rule


def _one_factor(node: ir.Node, carries_data: list[bool]) -> str:
    if sum(carries_data) <= 1:
        return ""
    return f"SiLU, {NOT_LINEAR}" if _is_silu(node) else f"{node.op_type} of two feature maps, {NOT_LINEAR}"


def _is_silu(node: ir.Node) -> bool:
    """Whether a product is x * sigmoid(x)."""
    for x, gate in (node.inputs, reversed(node.inputs)) if len(node.inputs) == 2 else ():
        sigmoid = None if gate is None else gate.producer()
        if sigmoid is not None and sigmoid.op_type == "Sigmoid" and sigmoid.inputs[0] is x:
            return True
    return False


def _windowed(node: ir.Node, carries_data: list[bool]) -> str:
    strides = node.attributes.get("strides")
    if strides is not None and any(stride != 1 for stride in strides.as_ints()):
        return f"{node.op_type} of stride {'x'.join(map(str, strides.as_ints()))}"
    return _only_first("the weights")(node, carries_data)


def _pad(node: ir.Node, carries_data: list[bool]) -> str:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    return "" if mode == "constant" and not any(carries_data[1:]) else f"Pad, which fills in the image ({mode})"


def _reduction(node: ir.Node, carries_data: list[bool]) -> str:
    data = node.inputs[0]
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    else:
        value = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
        axes = [] if value is None else value.numpy().tolist()
    rank = 4 if data is None or data.shape is None else len(data.shape)
    # The last two axes are rows and columns wherever features are a stack of maps.
    spatial = not axes or any(axis % rank >= rank - 2 for axis in axes)
    return f"{node.op_type} over the whole image" if spatial else _only_first("the axes")(node, carries_data)


def _normalisation(node: ir.Node, carries_data: list[bool]) -> str:
    training = node.attributes.get("training_mode")
    if training is not None and training.as_int():
        return "BatchNormalization in training mode"
    return _only_first("the statistics")(node, carries_data)


def _where(_node: ir.Node, carries_data: list[bool]) -> str:
    return "Where, the condition of which depends on the input" if carries_data[0] else ""


def _scatter(node: ir.Node, carries_data: list[bool]) -> str:
    reduction = node.attributes.get("reduction")
    if reduction is not None and reduction.as_string() not in ("none", "add"):
        return f"{node.op_type}, {NOT_LINEAR}"
    return f"{node.op_type}, the places of which depend on the input" if carries_data[1] else ""


def _cast(node: ir.Node, _carries_data: list[bool]) -> str:
    to = ir.DataType(node.attributes["to"].as_int())
    return "" if to.is_floating_point() else f"Cast to an integer, {NOT_LINEAR}"


_INDEXED = ("Slice", "Gather", "Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split")

RULES: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean", "Neg", "Identity", "Transpose", "Flatten"), _always),
    "Concat": _joined,
    **dict.fromkeys(("Mul", "MatMul", "Einsum", "Gemm"), _one_factor),
    **dict.fromkeys(("Conv", "ConvTranspose", "AveragePool"), _windowed),
    **dict.fromkeys(_INDEXED, _only_first("the indices")),
    **dict.fromkeys(("ReduceSum", "ReduceMean"), _reduction),
    "Dropout": _only_first("the settings"),
    "Pad": _pad,
    "Div": _only_first("the divisors"),
    "BatchNormalization": _normalisation,
    "Where": _where,
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "Cast": _cast,
}
"""Affine operators. What is missing here is a barrier; operators that change resolution are left out on purpose."""
