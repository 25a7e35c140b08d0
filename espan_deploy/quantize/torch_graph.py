"""A folded graph as a function in PyTorch: differentiable for the operators that most deployed networks are made of.

Other operators are evaluated by onnx's reference, so that any graph runs; no gradient comes through them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

if TYPE_CHECKING:
    import torch

    Convolve = Callable[[onnx.NodeProto, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    """A Conv node, its input, its float weight and bias -> its output."""

Attributes = dict[str, Any]

ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min")

KNOWN_OPS = frozenset(
    {
        *ELEMENTWISE,
        *(
            "Conv",
            "Relu",
            "LeakyRelu",
            "PRelu",
            "Sigmoid",
            "Tanh",
            "Erf",
            "Sqrt",
            "Exp",
            "Neg",
            "Abs",
            "Clip",
            "Identity",
        ),
        *("Concat", "Split", "Slice", "Reshape", "Transpose", "DepthToSpace", "Squeeze", "Unsqueeze", "Shape", "Cast"),
        *("GlobalAveragePool", "ReduceMean", "MaxPool", "AveragePool", "Resize", "Gelu", "HardSigmoid", "Constant"),
    }
)


def unlearnable(model: onnx.ModelProto) -> tuple[str, ...]:
    """The operators, by kind, that no gradient comes through; empty where a network can be learnt from."""
    return tuple(sorted({node.op_type for node in model.graph.node if not _is_known(node)}))


class TorchGraph:
    """A float32 graph with one input and one output; call it with (N, 3, H, W)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import torch

        self._graph = model.graph
        self._constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer
        }
        self._attributes = [
            {a.name: helper.get_attribute_value(a) for a in node.attribute} for node in model.graph.node
        ]
        self._last = _last_uses(model.graph)
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._references: dict[int, ReferenceEvaluator] = {}

    def __call__(self, x: torch.Tensor, convolve: Convolve | None = None) -> torch.Tensor:
        """The graph's output. convolve: does a Conv node's work in place of the graph's own float weights."""
        known: dict[str, Any] = {self._graph.input[0].name: x}
        for index, (node, attributes) in enumerate(zip(self._graph.node, self._attributes, strict=True)):
            inputs: list[Any] = [
                None if not name else self._constants.get(name, known.get(name)) for name in node.input
            ]
            if node.op_type == "Conv" and convolve is not None:
                results = [convolve(node, inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None)]
            elif not _is_known(node):
                results = self._reference(index, node, inputs)
            else:
                results = _run(node.op_type, inputs, attributes, len(node.output))
            known.update(zip(node.output, results, strict=True))
            for name in self._last[index]:
                known.pop(name, None)
        return known[self._graph.output[0].name]  # type: ignore[no-any-return]

    def _reference(self, index: int, node: onnx.NodeProto, inputs: list[Any]) -> list[torch.Tensor]:
        import torch

        if index not in self._references:
            self._references[index] = ReferenceEvaluator(node, opsets=self._opsets)
        feeds = {name: x.detach().numpy() for name, x in zip(node.input, inputs, strict=True) if name}
        return [torch.from_numpy(np.asarray(result)) for result in self._references[index].run(None, feeds)]


def convolution(node: onnx.NodeProto, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A Conv node with these weights."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return _convolve([x, weight, bias], attributes)


def _last_uses(graph: onnx.GraphProto) -> list[list[str]]:
    """What is needed no more after each node."""
    last: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        last.update(dict.fromkeys(node.input, index))
    last[graph.output[0].name] = len(graph.node)
    dying: list[list[str]] = [[] for _ in range(len(graph.node) + 1)]
    for name, index in last.items():
        dying[index].append(name)
    return dying


def _is_known(node: onnx.NodeProto) -> bool:
    return node.op_type in KNOWN_OPS and (node.op_type != "Resize" or _plain_resize(node))


def _plain_resize(node: onnx.NodeProto) -> bool:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    mode = attributes.get("mode", b"nearest")
    where = attributes.get("coordinate_transformation_mode", b"half_pixel")
    return mode == b"linear" and where in (b"half_pixel", b"pytorch_half_pixel")


def _convolve(inputs: list[Any], attributes: Attributes) -> torch.Tensor:
    import torch.nn.functional as F

    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.conv2d(
        x,
        weight,
        bias,
        stride=tuple(attributes.get("strides", [1, 1])),
        padding=(top, left),
        dilation=tuple(attributes.get("dilations", [1, 1])),
        groups=attributes.get("group", 1),
    )


def _run(op: str, inputs: list[Any], attributes: Attributes, outputs: int) -> list[Any]:
    """One node's results."""
    if op == "Conv":
        return [_convolve(inputs, attributes)]
    if op == "Split":
        return _split(inputs, attributes, outputs)
    if op in ELEMENTWISE:
        return [_elementwise(op, inputs)]
    if op in _SHAPES:
        return [_SHAPES[op](inputs, attributes)]
    return [_activation(op, inputs, attributes)]


def _elementwise(op: str, inputs: list[Any]) -> Any:
    import torch

    functions: Mapping[str, Callable[..., Any]] = {
        "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow,
        "Max": torch.maximum, "Min": torch.minimum,
    }  # fmt: skip
    result = inputs[0]
    for other in inputs[1:]:
        result = functions[op](result, other)
    return result


def _activation(op: str, inputs: list[Any], attributes: Attributes) -> Any:
    import torch
    import torch.nn.functional as F

    x = inputs[0]
    if op == "LeakyRelu":
        return F.leaky_relu(x, attributes.get("alpha", 0.01))
    if op == "PRelu":
        return torch.where(x < 0, x * inputs[1], x)
    if op == "Clip":
        low, high = (inputs[i] if len(inputs) > i else None for i in (1, 2))
        return torch.clamp(x, low, high)
    if op == "Gelu":
        return F.gelu(x, approximate=attributes.get("approximate", b"none").decode())
    if op == "HardSigmoid":
        return torch.clamp(x * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0, 1)
    functions: Mapping[str, Callable[[Any], Any]] = {
        "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Erf": torch.erf, "Sqrt": torch.sqrt,
        "Exp": torch.exp, "Neg": torch.neg, "Abs": torch.abs, "Identity": lambda value: value,
    }  # fmt: skip
    return functions[op](x)


def _split(inputs: list[Any], attributes: Attributes, outputs: int) -> list[Any]:
    import torch

    axis = attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        return list(torch.split(inputs[0], inputs[1].tolist(), axis))
    return list(torch.chunk(inputs[0], outputs, axis))


def _concat(inputs: list[Any], attributes: Attributes) -> Any:
    import torch

    return torch.cat(inputs, attributes["axis"])


def _slice(inputs: list[Any], _attributes: Attributes) -> Any:
    starts, ends = inputs[1].tolist(), inputs[2].tolist()
    axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    steps = inputs[4].tolist() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * inputs[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return inputs[0][tuple(index)]


def _reshape(inputs: list[Any], attributes: Attributes) -> Any:
    shape = inputs[1].tolist()
    if not attributes.get("allowzero", 0):
        shape = [inputs[0].shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return inputs[0].reshape(shape)


def _depth_to_space(inputs: list[Any], attributes: Attributes) -> Any:
    x, block = inputs[0], attributes["blocksize"]
    n, c, h, w = x.shape
    if attributes.get("mode", b"DCR") == b"CRD":
        return (
            x.reshape(n, c // block**2, block, block, h, w)
            .permute(0, 1, 4, 2, 5, 3)
            .reshape(n, c // block**2, h * block, w * block)
        )
    return (
        x.reshape(n, block, block, c // block**2, h, w)
        .permute(0, 3, 4, 1, 5, 2)
        .reshape(n, c // block**2, h * block, w * block)
    )


def _squeeze(inputs: list[Any], attributes: Attributes) -> Any:
    axes = inputs[1].tolist() if len(inputs) > 1 else attributes.get("axes")
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(inputs: list[Any], _attributes: Attributes) -> Any:
    result = inputs[0]
    for axis in sorted(inputs[1].tolist()):
        result = result.unsqueeze(axis)
    return result


def _shape(inputs: list[Any], attributes: Attributes) -> Any:
    import torch

    return torch.tensor(inputs[0].shape)[attributes.get("start", 0) : attributes.get("end", None)]


def _cast(inputs: list[Any], attributes: Attributes) -> Any:
    import torch

    numpy_type = helper.tensor_dtype_to_np_dtype(attributes["to"])
    return inputs[0].to(getattr(torch, str(numpy_type)))


def _mean(inputs: list[Any], attributes: Attributes) -> Any:
    axes = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attributes.get("axes")
    return inputs[0].mean(axes, keepdim=bool(attributes.get("keepdims", 1)))


def _pool(function: str) -> Callable[[list[Any], Attributes], Any]:
    def pool(inputs: list[Any], attributes: Attributes) -> Any:
        import torch.nn.functional as F

        top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
        fill = float("-inf") if function == "max_pool2d" else 0.0
        x = F.pad(inputs[0], (left, right, top, bottom), value=fill) if any((top, left, bottom, right)) else inputs[0]
        return getattr(F, function)(x, attributes["kernel_shape"], attributes.get("strides", [1, 1]))

    return pool


def _resize(inputs: list[Any], _attributes: Attributes) -> Any:
    import torch.nn.functional as F

    sizes = inputs[3] if len(inputs) > 3 else None
    if sizes is not None:
        return F.interpolate(inputs[0], size=sizes.tolist()[2:], mode="bilinear", align_corners=False)
    return F.interpolate(inputs[0], scale_factor=inputs[2].tolist()[2:], mode="bilinear", align_corners=False)


def _constant(_inputs: list[Any], attributes: Attributes) -> Any:
    import torch

    return torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy())


_SHAPES: Mapping[str, Callable[[list[Any], Attributes], Any]] = {
    "Concat": _concat,
    "Slice": _slice,
    "Reshape": _reshape,
    "Transpose": lambda inputs, attributes: inputs[0].permute(attributes["perm"]),
    "DepthToSpace": _depth_to_space,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Shape": _shape,
    "Cast": _cast,
    "GlobalAveragePool": lambda inputs, _attributes: inputs[0].mean((2, 3), keepdim=True),
    "ReduceMean": _mean,
    "MaxPool": _pool("max_pool2d"),
    "AveragePool": _pool("avg_pool2d"),
    "Resize": _resize,
    "Constant": _constant,
}
