"""What belongs to a sum over the image: the squares that it adds up, and what is computed from it, one value a channel.

FP16 ends at 65504, which the square of 256 and the sum of a few thousand values pass. What lies between the two ends is
a handful of values, so that FP32 costs nothing there: the whole of a channel attention stays in it, up to the product
with the image, and a layer's own convolution need not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

OF_A_SUM = "computed from a sum over the image, one value a channel"
SQUARED = "a square that only sums read"

SPATIAL = ({2, 3}, {-2, -1})
"""Height and width among the axes of an image (N, C, H, W), from the front and from the back."""

ENLARGING = ("Expand", "Resize", "Tile", "Upsample")


def kin_of_sums(
    nodes: Iterable[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    on_image: Collection[str],
    sums: Collection[str],
) -> dict[str, str]:
    """Node -> why it stays FP32, for a graph in order.

    on_image: values that depend on pixels. sums: operators that stay FP32 because they add up.
    """
    nodes = list(nodes)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kin: dict[str, str] = {}
    pooled: set[str] = set()
    for node in nodes:
        from_image = [name for name in node.input if name in on_image]
        if node.op_type in sums:
            if _pools(node, constants):
                pooled.update(node.output)
        elif from_image and pooled.issuperset(from_image) and node.op_type not in ENLARGING:
            kin[node.name] = OF_A_SUM
            pooled.update(node.output)
        elif _squares(node, constants):
            reading = readers.get(node.output[0], [])
            if reading and all(reader.op_type in sums for reader in reading):
                kin[node.name] = SQUARED
    return kin


def _pools(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node sums over height and width at least."""
    if node.op_type == "GlobalAveragePool":
        return True
    if not node.op_type.startswith("Reduce"):
        return False
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if axes is None and len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            return False
        axes = numpy_helper.to_array(constants[node.input[1]]).ravel().tolist()
    return axes is None or any(spatial <= set(axes) for spatial in SPATIAL)


def _squares(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type == "Mul":
        return bool(node.input[0] == node.input[1])
    return (
        node.op_type == "Pow"
        and node.input[1] in constants
        and bool(np.all(numpy_helper.to_array(constants[node.input[1]]) == 2))
    )
