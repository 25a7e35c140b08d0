"""Finding what might fold: connected parts of a graph that are affine from a few feature maps to one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from espan_deploy.fold.affine import barrier
from espan_deploy.graph.kinds import Kind, Kinds, data_inputs
from espan_deploy.products import WEIGHT_OPS

MAX_SOURCES = 8
"""Regions that read more feature maps than this are not tried: no network needs them, and each costs a measurement."""


@dataclass(frozen=True)
class Region:
    """Affine nodes between feature maps.

    target: the (N, C, H, W) value that is computed. sources: the (N, C, H, W) values it is computed from.
    nodes: every node between them, in the graph's order.
    """

    target: ir.Value
    sources: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]

    def removable(self, kinds: Kinds) -> tuple[ir.Node, ...]:
        """The nodes nobody else needs once the target is computed another way."""
        gone: set[ir.Node] = set()
        for node in reversed(self.nodes):
            if all(_only_used_by(output, gone, self.target, kinds) for output in node.outputs):
                gone.add(node)
        return tuple(node for node in self.nodes if node in gone)


def _only_used_by(value: ir.Value, gone: set[ir.Node], target: ir.Value, kinds: Kinds) -> bool:
    """Whether nodes that go are all that use a value, directly or to learn its size."""
    if value is target:
        return True
    return not value.is_graph_output() and all(
        consumer in gone
        or all(kinds[o] != Kind.DATA and _only_used_by(o, gone, target, kinds) for o in consumer.outputs)
        for consumer in value.consumers()
    )


def channels_of(value: ir.Value) -> int | None:
    """The channels of a feature map, or None where the value is not (N, C, H, W) with C known."""
    if value.shape is None or len(value.shape) != 4:
        return None
    channels = value.shape[1]
    return channels if isinstance(channels, int) else None


def regions_of(target: ir.Value, positions: dict[ir.Node, int], kinds: Kinds) -> Iterator[Region]:
    """The regions that end in target, smallest first.

    Their sources are cut in the order of computation, latest first, so that each region is closed: whatever lies
    between its sources and its target is in it. A cut through several maps is taken only where every one of them
    has to be computed anyway: because it is not affine, or because something outside the region reads it too.
    """
    frontier: set[ir.Value] = {target}
    nodes: set[ir.Node] = set()
    while True:
        open_values = [v for v in frontier if _affine_producer(v, kinds) is not None]
        if not open_values:
            return
        node = max((_producer(v) for v in open_values), key=positions.__getitem__)
        nodes.add(node)
        frontier -= set(node.outputs)
        frontier |= set(data_inputs(node, kinds))
        if len(frontier) > MAX_SOURCES or any(channels_of(v) is None for v in frontier):
            continue
        if len(frontier) == 1 or all(
            _affine_producer(v, kinds) is None or not _only_used_by(v, nodes, target, kinds) for v in frontier
        ):
            # The order of sources follows the graph, so that folding twice gives the same file.
            sources = sorted(frontier, key=lambda v: -1 if v.producer() is None else positions[_producer(v)])
            yield Region(target, tuple(sources), tuple(sorted(nodes, key=positions.__getitem__)))


def _affine_producer(value: ir.Value, kinds: Kinds) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and not barrier(node, kinds) else None


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def has_weights(node: ir.Node) -> bool:
    """Whether the node multiplies data with weights."""
    return node.op_type in WEIGHT_OPS


def module_path(nodes: tuple[ir.Node, ...]) -> str:
    """The modules of the network that these nodes came from, as the exporter recorded them, or the last node's name.

    What lies in one top-level module is named by its innermost common module; several are joined by ``+``.
    """
    by_top: dict[str, tuple[str, ...]] = {}
    for scope in filter(None, map(_scope, nodes)):
        known = by_top.setdefault(scope[0], scope)
        shared = next((i for i, (a, b) in enumerate(zip(known, scope, strict=False)) if a != b), len(known))
        by_top[scope[0]] = known[: min(shared, len(scope))]
    return "+".join(".".join(scope) for scope in by_top.values()) or nodes[-1].name or nodes[-1].op_type


def _scope(node: ir.Node) -> tuple[str, ...]:
    """``('block_1', 'c1_r', 'eval_conv')``, from what torch's exporter writes beside each node."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    scopes = [part.strip().strip("'\"") for part in text.strip("[]").split(",")]
    # The first is the network itself, the last names the operation, not a module.
    return tuple(scopes[-2].split(".")) if len(scopes) > 2 and scopes[-2] else ()
