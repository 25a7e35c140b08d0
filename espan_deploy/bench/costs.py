"""What a graph must at least do, layer by layer: multiply-adds, and bytes that have to move."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from espan_deploy.backends.model import ModelFile
from espan_deploy.errors import ExportError
from espan_deploy.products import PRODUCTS

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product on one image.

    names: the graph's of the node and of what it makes, then of the one node that reads that, which engines fuse.
    read, written: values of activations; weights: values of weights and bias. What lies between two layers (sums,
    gates, activations) is not counted: engines fuse it into the layer before.
    """

    name: str
    op_type: str
    kernel: str
    macs: int
    read: int
    written: int
    weights: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Costs:
    """Of one image of height x width.

    activations: values written by the layers (the reports' convention). peak_activation_bytes: the most that has to
    be in memory at once, in float32, running the nodes in the graph's order and dropping each value after its last
    reader. receptive_field: side in input pixels, None where it is the whole image.
    """

    height: int
    width: int
    parameters: int
    multiply_adds: int
    activations: int
    convolutions: int
    peak_activation_bytes: int
    receptive_field: int | None
    layers: tuple[Layer, ...]

    def to_json(self, *, layers: bool) -> dict[str, Any]:
        """Plain data, with or without the layers."""
        document = asdict(self)
        if not layers:
            del document["layers"]
        return document


def graph_costs(file: ModelFile, height: int, width: int) -> Costs:
    """Count a model. Raises ExportError where it is no (N, C, H, W) graph or its sizes depend on pixels."""
    from espan_deploy.graph import SizedGraph, complexity

    model = _graph(file)
    if model is None:
        raise ExportError(f"the layers of {file.path.name} are not counted: only those of ONNX files in floats are")
    graph = SizedGraph(model)
    counted, shapes = complexity(graph, height, width), graph.at(height, width).shapes()
    if counted.multiply_adds is None or counted.activations is None:
        raise ExportError(f"the layers of {file.path.name} are not counted: their sizes depend on pixels")
    by_name = {layer.name: layer for layer in counted.layers}
    layers = []
    nodes: Any = model.graph
    for node in nodes:
        if node.op_type not in PRODUCTS:
            continue
        cost = by_name[node.name or node.outputs[0].name or ""]
        assert cost.macs is not None
        assert cost.activations is not None
        weight = shapes[node.inputs[1].name]
        layers.append(
            Layer(
                name=_layer_name(node),
                op_type=node.op_type,
                kernel=f"{weight[2]}x{weight[3]}, {weight[1]}→{weight[0]}" if len(weight) == 4 else "",
                macs=cost.macs,
                read=_size(shapes, node.inputs[0]),
                written=cost.activations,
                weights=cost.parameters,
                names=_names(node),
            )
        )
    halo = file.description.halo
    return Costs(
        height=height,
        width=width,
        parameters=counted.parameters,
        multiply_adds=counted.multiply_adds,
        activations=counted.activations,
        convolutions=counted.convolutions,
        peak_activation_bytes=_peak(model, shapes),
        receptive_field=None if halo is None else 2 * halo + 1,
        layers=tuple(layers),
    )


def _graph(file: ModelFile) -> Any:
    """The (N, C, H, W) graph of a file in floats, or None where it is an engine or has its pixels' layout built in."""
    import onnx
    import onnx_ir as ir

    from espan_deploy.graph.quantised import without_quantisation

    if file.backend or file.description.pixels == "uint8":
        return None
    model = ir.from_proto(onnx.load_from_string(file.data))
    return without_quantisation(model) if file.only_int8 else model


def _layer_name(node: Any) -> str:
    """Of its weights, where they kept the network's own name."""
    weight = node.inputs[1].name if len(node.inputs) > 1 else ""
    return weight.removesuffix(".weight").removesuffix(".eval_conv") or node.name or node.op_type


def _names(node: Any) -> tuple[str, ...]:
    readers = list(node.outputs[0].uses())
    nodes = [node, *(use.node for use in readers if len(readers) == 1 and use.node.op_type not in PRODUCTS)]
    return tuple(name for each in nodes for name in (each.name, each.outputs[0].name) if name)


def _peak(model: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Most bytes alive at once, the image included; values of unknown size count as nothing."""
    nodes = list(model.graph)
    constants = set(model.graph.initializers)
    last_use = {value.name: index for index, node in enumerate(nodes) for value in node.inputs if value is not None}
    last_use |= {value.name: len(nodes) for value in model.graph.outputs}

    alive = {value.name: _size(shapes, value) for value in model.graph.inputs}
    peak = sum(alive.values())
    for index, node in enumerate(nodes):
        alive |= {value.name: _size(shapes, value) for value in node.outputs if value.name not in constants}
        peak = max(peak, sum(alive.values()))
        alive = {name: held for name, held in alive.items() if last_use.get(name, -1) > index}
    return peak * FLOAT_BYTES


def _size(shapes: dict[str, tuple[int, ...]], value: Any) -> int:
    return math.prod(shapes.get(value.name, (0,)))


def starved_layer(file: ModelFile, height: int, width: int) -> str | None:
    """The first layer whose kernel is larger than what it is given, padding included, of an image of this size.

    Engines do not agree on such sizes: ONNX Runtime refuses them, OpenVINO makes something up. None where every
    layer has enough, or the graph's sizes depend on pixels.
    """
    from espan_deploy.graph import SizedGraph

    model = _graph(file)
    if model is None:
        return None
    shapes = SizedGraph(model).at(height, width).shapes()
    nodes: Any = model.graph
    for node in nodes:
        kernel = _kernel(node, shapes)
        given = shapes.get(node.inputs[0].name, ())[2:] if kernel else ()
        pads = node.attributes.get_ints("pads", [0] * 4) if kernel else []
        for side, size, before, after in zip(given, kernel, pads[:2], pads[2:], strict=False):
            if side + before + after < size:
                return f"{_layer_name(node)} has a window of {size} pixels, and {side + before + after} to look at"
    return None


def _kernel(node: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The side lengths of a convolution's or pooling's window, dilation included."""
    if node.op_type not in ("Conv", "MaxPool", "AveragePool"):
        return ()
    is_pool = node.op_type != "Conv"
    sides = tuple(node.attributes.get_ints("kernel_shape")) if is_pool else shapes[node.inputs[1].name][2:]
    dilations = node.attributes.get_ints("dilations", [1] * len(sides))
    return tuple((side - 1) * dilation + 1 for side, dilation in zip(sides, dilations, strict=True))
