"""Which operator froze: a graph that is wrong at some size beside one that was exported for that size alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from espan_deploy.backends.graph_evaluator import GraphEvaluator
from espan_deploy.errors import EspanDeployError
from espan_deploy.facts import Forward, Planes, Takes
from espan_deploy.graph.kinds import Kind, classify
from espan_deploy.proof import GLANCE_SIZE, LARGER_SIZES, PARITY_TOLERANCE, PROVEN_SIZES, agree_at, proof_image

STACK_TRACE = "pkg.torch.onnx.stack_trace"
"""Where PyTorch's exporter keeps the lines of the network that a node comes from, the innermost last."""

PLACE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]+\n\s*(?P<code>[^\n]+)')

AT_ONCE = 200
"""Nodes whose results are asked for in one run: all of a large graph's would fill the memory."""


def first_difference(
    graph: ir.Model,
    network: Forward,
    of_one_size: Callable[[tuple[int, int]], ir.Model],
    takes: Takes,
    *,
    value_range: float,
) -> str:
    """What a refusal adds: the first operator whose result is not that of the same network exported for one size alone.

    of_one_size: exports it for this height and width. Returns ". What differs first, at 100x35, is Reshape node_view_3
    (swin.py, line 12: x.view(b, -1))", or "" where no operator is found.
    """
    evaluator = GraphEvaluator(ir.to_proto(graph))
    sizes = [takes.fit(*size) for size in (GLANCE_SIZE, *PROVEN_SIZES, *LARGER_SIZES)]
    for size in sizes if takes.fixed is None else ():
        if agree_at(lambda x: evaluator.run(x)[0], network, size, value_range=value_range):
            continue
        try:
            found = _first_difference(graph, of_one_size(size), proof_image(1, *size, value_range))
        except EspanDeployError:
            return ""
        return f". What differs first, at {size[0]}x{size[1]}, is {found}" if found else ""
    return ""


def _first_difference(graph: ir.Model, right: ir.Model, image: Planes) -> str:
    """Nodes that read pixels are paired by operator and line of the network, and compared in the graph's order."""
    own, theirs = _reading_pixels(graph), _reading_pixels(right)
    matcher = SequenceMatcher(None, [*map(_signature, own)], [*map(_signature, theirs)], autojunk=False)
    blocks = matcher.get_matching_blocks()
    pairs = [(own[block.a + i], theirs[block.b + i]) for block in blocks for i in range(block.size)]
    for first in range(0, len(pairs), AT_ONCE):
        some = pairs[first : first + AT_ONCE]
        results = (_results(model, image, [pair[i] for pair in some]) for i, model in enumerate((graph, right)))
        for (node, _), got, expected in zip(some, *results, strict=True):
            if not _alike(got, expected):
                return _told(node)
    return ""


def _reading_pixels(model: ir.Model) -> list[ir.Node]:
    kinds = classify(model.graph)
    return [node for node in model.graph if node.outputs[0].name and kinds[node.outputs[0]] == Kind.DATA]


def _signature(node: ir.Node) -> tuple[str, str]:
    return node.op_type, node.metadata_props.get(STACK_TRACE, "")


def _results(model: ir.Model, image: Planes, nodes: Sequence[ir.Node]) -> list[NDArray[Any]]:
    """The first result of each node. Raises InferenceError where the graph fails on this image."""
    own = [output.name or "" for output in model.graph.outputs]
    names = [node.outputs[0].name or "" for node in nodes]
    further = [name for name in names if name not in own]
    made = GraphEvaluator(ir.to_proto(model), outputs=further).run(image)
    found = dict(zip((*own, *further), made, strict=True))
    return [found[name] for name in names]


def _alike(got: NDArray[Any], expected: NDArray[Any]) -> bool:
    if got.shape != expected.shape:
        return False
    if got.dtype.kind != "f":
        return True  # places and choices: equal values may be sorted either way
    worst = np.abs(got - expected).max(initial=0)
    return bool(worst <= PARITY_TOLERANCE * max(np.abs(expected).max(initial=0), np.finfo(np.float32).tiny))


def _told(node: ir.Node) -> str:
    traced = PLACE.finditer(node.metadata_props.get(STACK_TRACE, ""))
    places = [place for place in traced if "torch" not in Path(place["file"]).parts]
    if not places:
        return f"{node.op_type} {node.name}"
    place = places[-1]
    return f"{node.op_type} {node.name} ({Path(place['file']).name}, line {place['line']}: {place['code'].strip()})"
