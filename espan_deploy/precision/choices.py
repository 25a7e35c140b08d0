"""What a choice is made from: scores of which the largest decides what becomes of a pixel.

Two scores that FP16 rounds to one, or past each other, send the pixel another way, and what comes out is not a little
off. From the product that makes the scores to the choice stays FP32; what it reads may be FP16.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import onnx

from espan_deploy.products import WEIGHT_OPS

OF_A_CHOICE = "scores that a choice is made from"
CHOOSING = ("ArgMax", "ArgMin", "Hardmax", "TopK")


def kin_of_choices(nodes: Sequence[onnx.NodeProto], on_image: Set[str]) -> dict[str, str]:
    """Node -> why it stays FP32, for a graph in order. on_image: values that depend on pixels."""
    kin: dict[str, str] = {}
    scores: set[str] = set()
    for node in reversed(nodes):
        chooses = node.op_type in CHOOSING
        if not (chooses or scores.intersection(node.output)) or on_image.isdisjoint(node.output):
            continue
        kin[node.name] = OF_A_CHOICE
        if node.op_type not in WEIGHT_OPS:
            scores.update(node.input[:1] if chooses else node.input)
    return kin
