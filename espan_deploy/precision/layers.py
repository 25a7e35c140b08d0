"""A graph's layers: what a user keeps in FP32 and what a report names, one per convolution or matrix product."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from espan_deploy.errors import ExportError
from espan_deploy.products import PRODUCTS

HEAD = "input"
"""The layer of the nodes before the first product."""

GLOB = "*?["
"""What makes a name a pattern."""


@dataclass(frozen=True)
class Layer:
    """name: its weight's name without ".weight", or its first node's. nodes: names, in the graph's order."""

    name: str
    nodes: tuple[str, ...]


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own, keeping those that have one."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def layers_of(graph: onnx.GraphProto) -> tuple[Layer, ...]:
    """The layers of a graph whose nodes have names, in the graph's order.

    A node belongs to the layer that made the latest of its inputs.
    """
    constants = {tensor.name for tensor in graph.initializer}
    order: list[str] = []
    members: dict[str, list[str]] = {}
    made_by: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in PRODUCTS:
            name = _anchor_name(node, constants)
            if name in members:
                name = node.name
            order.append(name)
            members[name] = []
            index = len(order) - 1
        else:
            index = max((made_by.get(value, -1) for value in node.input), default=-1)
            if index < 0:
                if HEAD not in members:
                    order.insert(0, HEAD)
                    members[HEAD] = []
                    made_by = {value: position + 1 for value, position in made_by.items()}
                index = order.index(HEAD)
        members[order[index]].append(node.name)
        made_by.update(dict.fromkeys(node.output, index))
    return tuple(Layer(name, tuple(members[name])) for name in order)


def _anchor_name(node: onnx.NodeProto, constants: set[str]) -> str:
    weights = [value for value in node.input[1:2] if value in constants]
    if not weights:
        return node.name
    name: str = weights[0].split(".pixels", 1)[0].removesuffix(".weight")
    return name


def nodes_to_keep(layers: Sequence[Layer], keep: Iterable[str]) -> set[str]:
    """The nodes that names or patterns ("block_1.*") of layers or nodes mean.

    Raises ExportError, with the nearest name, where one means none.
    """
    known = {layer.name: layer.nodes for layer in layers}
    known.update({node: (node,) for layer in layers for node in layer.nodes if node not in known})
    kept: set[str] = set()
    for pattern in keep:
        if pattern in known and not any(character in pattern for character in GLOB):
            matches = [pattern]  # thousands of names against thousands of patterns take seconds
        else:
            matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches:
            near = difflib.get_close_matches(pattern, known, 1, 0.0)
            raise ExportError(
                f"the model has no layer {pattern!r} to keep in FP32",
                hint=f"the nearest is {near[0]!r}" if near else "the model has no layers at all",
            )
        kept.update(node for name in matches for node in known[name])
    return kept
