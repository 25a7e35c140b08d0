"""Which convolutions of a folded graph can be quantised, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from espan_deploy.products import PRODUCTS


@dataclass(frozen=True)
class Convolution:
    """A convolution with constant weights.

    name: its node's. value: what it reads. weight: (O, I / groups, kh, kw). bias: (O,). pads: top, left, bottom, right.
    """

    name: str
    value: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    groups: int
    pads: tuple[int, int, int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]

    def weight_of_channels(self) -> NDArray[np.float64]:
        """(C,): the largest magnitude among the weights that read each input channel."""
        per_group = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        largest: NDArray[np.float64] = np.abs(per_group).max(axis=(1, 3, 4)).reshape(-1).astype(np.float64)
        return largest

    def energy_of_channels(self) -> NDArray[np.float64]:
        """(C,): the sum of squares of the weights that read each input channel."""
        per_group = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        energy: NDArray[np.float64] = np.square(per_group, dtype=np.float64).sum(axis=(1, 3, 4)).reshape(-1)
        return energy

    def scaled(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights for an input whose channels were divided by ``factors`` (C,)."""
        per_group = self.weight.reshape(self.groups, -1, *self.weight.shape[1:]).astype(np.float64)
        result: NDArray[np.float64] = per_group * factors.reshape(self.groups, 1, -1, 1, 1)
        return result.reshape(self.weight.shape)


@dataclass(frozen=True)
class Skipped:
    """A node that stays in float, and why."""

    node: str
    reason: str


def quantizable(graph: onnx.GraphProto) -> tuple[tuple[Convolution, ...], tuple[Skipped, ...]]:
    """The convolutions that can be quantised, in the graph's order, and what else multiplies and adds."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: list[Convolution] = []
    skipped: list[Skipped] = []
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        reason = _unfit(node, constants)
        if reason:
            skipped.append(Skipped(node.name, reason))
        else:
            found.append(_convolution(node, constants))
    return tuple(found), tuple(skipped)


def skipped_note(skipped: Sequence[Skipped]) -> str:
    """How many stay in float for which reason."""
    by_reason: dict[str, int] = {}
    for each in skipped:
        by_reason[each.reason] = by_reason.get(each.reason, 0) + 1
    return "in float: " + "; ".join(f"{count} nodes: {reason}" for reason, count in by_reason.items())


def _unfit(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> str:
    """Why a node cannot be quantised; empty where it can."""
    if node.op_type != "Conv":
        return f"{node.op_type} is not quantised, only convolutions are"
    if any(name and name not in constants for name in node.input[1:]):
        return "its weights are computed from the picture"
    dimensions = len(constants[node.input[1]].dims) - 2
    if dimensions != 2:
        return f"a convolution over {dimensions} dimensions is not quantised"
    padding = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    return "" if padding in (b"", b"NOTSET") else "its padding is left to the runtime"


def _convolution(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Convolution:
    weight = numpy_helper.to_array(constants[node.input[1]])
    has_bias = len(node.input) > 2 and node.input[2]
    bias = numpy_helper.to_array(constants[node.input[2]]) if has_bias else np.zeros(len(weight), np.float32)
    ints = {a.name: tuple(a.ints) for a in node.attribute}
    pads, strides, dilations = ints.get("pads", (0,) * 4), ints.get("strides", (1, 1)), ints.get("dilations", (1, 1))
    return Convolution(
        node.name,
        node.input[0],
        weight,
        bias,
        next((a.i for a in node.attribute if a.name == "group"), 1),
        (pads[0], pads[1], pads[2], pads[3]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
    )
