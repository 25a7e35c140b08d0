"""Pixels in OpenVINO's own operators, and what a network takes in memory.

The same as :func:`espan_deploy.pixels.with_pixels`, without the time to import onnx, and in the order that OpenVINO's
CPU kernels like best.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from espan_deploy.backends.model import INT8
from espan_deploy.backends.openvino_quantisers import write_out_quantisers
from espan_deploy.backends.openvino_tail import WHITE, blocks_of_bytes
from espan_deploy.description import ModelDescription
from espan_deploy.errors import InputShapeError

PROBE_SIDE = 64

COPIES = 1.4
"""Memory really taken over the sum of activations alive: reordered copies, and room that is kept (measured: 1.35)."""


def with_pixels(network: Any, description: ModelDescription, pixels: str) -> Any:
    """A network, (N, 3, H, W) in its own range, as one of (N, H, W, 3) RGB at both ends; it is changed and consumed.

    pixels: "uint8" is [0, 255], clipped and rounded to nearest, and has a second output, the guard, (N,): non-finite
    where any pixel is. A network that ends in a pixel shuffle gives (N, H, W, 3 * scale**2) then: the block of pixels
    that each one becomes, row by row. "float32" is [0, 1], neither clipped nor rounded.
    Raises InputShapeError where the network takes bytes by itself, and floats are wanted.
    """
    import openvino
    from openvino import opset13 as ops

    as_bytes = pixels == "uint8"
    if description.pixels == "uint8":
        if as_bytes:
            return network
        raise InputShapeError(
            "the model takes bytes only, and this image has 16 bits per channel",
            hint="export the model with float pixels",
        )
    if description.precision == INT8:
        write_out_quantisers(network)
    old, result = network.get_parameters()[0], network.get_results()[0].input_value(0)
    factor = np.float32(description.value_range / (WHITE if as_bytes else 1.0))
    f32 = openvino.Type.f32
    source = ops.parameter([-1, -1, -1, 3], openvino.Type.u8 if as_bytes else f32)
    head = _swapped(ops.transpose(ops.convert(source, f32), np.array([0, 3, 1, 2])), description)
    if factor != 1:
        head = ops.multiply(head, factor)
    if factor != 1 and as_bytes:
        # No value changes, but a subtraction behind it cannot become one fused multiply-add for some shapes only.
        head = ops.clamp(head, 0.0, description.value_range)
    if old.get_element_type() != f32:
        head = ops.convert(head, old.get_element_type())
    for reader in old.output(0).get_target_inputs():
        reader.replace_source_output(head.output(0))

    if not as_bytes:
        tail = _swapped(_scaled(result, 1 / factor), description)
        return openvino.Model([ops.transpose(tail, np.array([0, 2, 3, 1]))], [source])
    outputs = blocks_of_bytes(result, description)
    if outputs is None:
        tail = _swapped(_scaled(result, 1 / factor), description)
        guard = ops.reduce_mean(tail, np.array([1, 2, 3]))
        rounded = ops.round(ops.clamp(tail, 0.0, WHITE), "half_to_even")
        outputs = [ops.convert(ops.transpose(rounded, np.array([0, 2, 3, 1])), openvino.Type.u8), guard]
    return openvino.Model(outputs, [source])


def _scaled(value: Any, factor: float) -> Any:
    import openvino
    from openvino import opset13 as ops

    node = ops.convert(value, openvino.Type.f32) if value.get_element_type() != openvino.Type.f32 else value.get_node()
    return ops.multiply(node, np.float32(factor)) if factor != 1 else node


def _swapped(node: Any, description: ModelDescription) -> Any:
    from openvino import opset13 as ops

    return node if description.color_order == "RGB" else ops.gather(node, np.array([2, 1, 0]), np.array(1))


def rounded_operations(compiled: Any) -> list[str]:
    """Names of the operations behind which a compiled network rounds to bfloat16, those of convolutions aside.

    That is at the end of each of its elementwise kernels. Convolutions round in any network, and what goes into one is
    rounded then at the latest.
    """
    rounded = []
    for kernel in compiled.get_runtime_model().get_ordered_ops():
        info = {key: value.astype(str) for key, value in kernel.get_rt_info().items()}
        if info.get("layerType") == "Eltwise" and info.get("outputPrecisions", "").startswith("bf16"):
            rounded.append(info["originalLayersNames"].split(",")[-1])
    return rounded


def round_at(network: Any, names: Collection[str]) -> None:
    """Make a network, in place, round to bfloat16 behind these operations."""
    import openvino
    from openvino import opset13 as ops

    for op in network.get_ordered_ops():
        readers = list(op.output(0).get_target_inputs()) if op.get_friendly_name() in names else []
        if any(reader.get_node().get_type_name() not in ("Convolution", "Result") for reader in readers):
            value = ops.convert(ops.convert(op, openvino.Type.bf16), op.get_element_type())
            for reader in readers:
                reader.replace_source_output(value.output(0))


def bytes_per_pixel(network: Any, precision: str) -> int:
    """Peak of the activations alive at once, per low-resolution pixel, were each freed after its last use."""
    probe = network.clone()
    try:
        probe.reshape({0: [1, 3, PROBE_SIDE, PROBE_SIDE]})
    except RuntimeError:
        return 0  # a network with sizes of its own
    size = 2 if precision == "bf16" else 4
    operations = [op for op in probe.get_ordered_ops() if op.get_type_name() not in ("Constant", "Result")]
    last_use: dict[str, int] = {}
    for index, op in enumerate(operations):
        for value in op.input_values():
            last_use[value.get_node().get_name()] = index
    alive: dict[str, int] = {}
    peak = 0
    for index, op in enumerate(operations):
        if any(value.get_node().get_type_name() != "Constant" for value in op.input_values()):
            shapes = (op.output(i).get_partial_shape() for i in range(op.get_output_size()))
            alive[op.get_name()] = sum(size * int(np.prod(shape.get_max_shape())) for shape in shapes)
        peak = max(peak, sum(alive.values()))
        alive = {name: count for name, count in alive.items() if last_use.get(name, index) > index}
    return int(COPIES * peak / PROBE_SIDE**2)
