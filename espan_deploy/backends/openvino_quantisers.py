"""Quantisers in OpenVINO, so that a network for one shape and the one for any shape give the same codes.

Where a convolution's kernel ends with a quantiser, it is the same kernel in both. Any other becomes part of a kernel
made for one shape, and stands alone in the network for any: OpenVINO computes it in two ways then, a value on the
boundary of two codes takes the one here and the other there, and the pictures differ by several levels. Written out as
a sum and a product, which nothing contracts, it is computed in one way only.

So it is with the scales of a convolution's weights: where no bias follows, they are a product of its own, which may be
contracted with a sum behind it. A clip that changes no value keeps them in the convolution's kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from espan_deploy.backends.openvino_tail import constant

CONVOLUTIONS = ("Convolution", "GroupConvolution")

ONE_OPERAND = ("Relu", "PRelu", "Sigmoid", "Tanh", "Clamp", "Elu", "Gelu", "HSwish", "Mish", "Swish")
WITH_CONSTANT = ("Add", "Subtract", "Multiply")
"""What a convolution's kernel may end with, before a quantiser; and a product with its own sigmoid, which is SiLU."""


LARGEST = float(np.finfo(np.float32).max)


def write_out_quantisers(network: Any) -> None:
    """Replace, in place, quantisers of values that no convolution's kernel ends with, and keep scales in kernels."""
    for node in network.get_ordered_ops():
        if node.get_type_name() in CONVOLUTIONS:
            _keep_scales(node)
        if node.get_type_name() != "FakeQuantize" or node.input_value(0).get_node().get_type_name() == "Parameter":
            continue
        readers = list(node.output(0).get_target_inputs())
        found = (constant(node.input_value(index).get_node()) for index in range(1, 5))
        limits = [float(limit.reshape(-1)[0]) for limit in found if limit is not None and limit.size == 1]
        if len(readers) != 1 or len(limits) != 4:
            continue
        codes = readers[0].get_node()
        if codes.get_type_name() == "Convert" and not _ends_a_convolution(node.input_value(0)):
            written = _written_out(node.input_value(0), limits, codes)
            written.set_friendly_name(codes.get_friendly_name())
            for reader in codes.output(0).get_target_inputs():
                reader.replace_source_output(written.output(0))


def _keep_scales(convolution: Any) -> None:
    from openvino import opset13 as ops

    targets = [t for t in convolution.output(0).get_target_inputs() if t.get_node().get_type_name() != "ShapeOf"]
    readers = [target.get_node() for target in targets]
    if len(readers) == 1 and readers[0].get_type_name() in ("DepthToSpace", *ONE_OPERAND, *WITH_CONSTANT):
        others = [constant(value.get_node()) for value in readers[0].input_values()[1:]]
        if all(other is not None for other in others):
            return  # the network's last, or an end of its kernel, as a bias is one
    kept = ops.clamp(convolution, -LARGEST, LARGEST)
    for target in targets:
        target.replace_source_output(kept.output(0))


def _written_out(value: Any, limits: list[float], codes: Any) -> Any:
    """limits: of the values, low and high, and of their codes."""
    from openvino import opset13 as ops

    low, high, first, last = limits
    scale = (high - low) / (last - first)
    shift = first * scale - low
    moved = ops.add(value, np.float32(shift)) if shift else value.get_node()
    levels = ops.clamp(ops.multiply(moved, np.float32(1 / scale)), first, last)
    return ops.convert(ops.round(levels, "half_to_even"), codes.get_output_element_type(0))


def _ends_a_convolution(value: Any) -> bool:
    node, readers = value.get_node(), 1
    while _readers(node) == readers:
        kind, readers = node.get_type_name(), 1
        if kind in CONVOLUTIONS:
            return True
        if kind == "Multiply" and (inner := _silu_of(node)) is not None:
            node, readers = inner, 2
        elif kind in ONE_OPERAND or (kind in WITH_CONSTANT and constant(node.input_value(1).get_node()) is not None):
            node = node.input_value(0).get_node()
        else:
            return False
    return False


def _readers(node: Any) -> int:
    """Of its values; what asks for its shape, as for a bias's, reads none."""
    return sum(each.get_node().get_type_name() != "ShapeOf" for each in node.output(0).get_target_inputs())


def _silu_of(product: Any) -> Any:
    """The node whose product with its sigmoid this is, or None."""
    factors = [product.input_value(index).get_node() for index in range(2)]
    for gate, value in (factors, factors[::-1]):
        if gate.get_type_name() == "Sigmoid" and gate.input_value(0).get_node().get_name() == value.get_name():
            return value  # "==" between nodes would make an operator
    return None
