"""What each value of a graph depends on: nothing, the input's size, or what is in it."""

from __future__ import annotations

from enum import IntEnum

import onnx_ir as ir


class Kind(IntEnum):
    """What a value depends on; the largest kind among a node's inputs is that of its outputs."""

    CONSTANT = 0
    SHAPE = 1  # on the sizes of the graph's inputs, not on what is in them
    DATA = 2


Kinds = dict[ir.Value, Kind]


def classify(graph: ir.Graph) -> Kinds:
    """What each value of the graph depends on."""
    kinds: Kinds = dict.fromkeys(graph.inputs, Kind.DATA)
    for node in graph:
        inputs = [kinds.get(value, Kind.CONSTANT) for value in node.inputs if value is not None]
        kind = max(inputs, default=Kind.CONSTANT)
        if node.op_type in ("Shape", "Size"):
            kind = min(kind, Kind.SHAPE)
        elif node.op_type in ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"):
            kind = Kind.DATA
        if any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            kind = Kind.DATA  # a branch or loop may read any outer value
        for output in node.outputs:
            kinds[output] = kind
    return kinds


def data_inputs(node: ir.Node, kinds: Kinds) -> tuple[ir.Value, ...]:
    """The different inputs of a node that carry data."""
    return tuple(dict.fromkeys(v for v in node.inputs if v is not None and kinds.get(v, Kind.CONSTANT) == Kind.DATA))
