"""The end of a network in OpenVINO: convolution and pixel shuffle become blocks of bytes, written by one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.description import ModelDescription

WHITE = 255.0


def blocks_of_bytes(result: Any, description: ModelDescription) -> list[Any] | None:
    """The outputs of a network that ends in convolution and pixel shuffle; None of any other.

    Scale, clip and round go into the convolution, and bytes are shuffled, not floats, and by the caller: moving 48
    floats per pixel through five operators took a quarter of ESPAN's time in bfloat16, and rounded them on the way.
    The second output, the guard, is left out where the convolution computes in INT8: what it reads is finite.
    """
    import openvino
    from openvino import opset13 as ops

    last = _Last.of(result)
    if last is None:
        return None
    # Channels in the order (row, column, colour), so that a pixel's bytes come to lie side by side.
    order = np.arange(3 * last.block**2).reshape(3, last.block, last.block)
    order = order[:: 1 if description.color_order == "RGB" else -1].transpose(1, 2, 0).reshape(-1)
    to_white = WHITE / description.value_range
    attributes = last.convolution.get_attributes()
    features = last.convolution.input_value(0)
    levels = ops.convolution(
        features,
        last.weights.scaled_and_ordered(to_white, order),
        attributes["strides"],
        attributes["pads_begin"],
        attributes["pads_end"],
        attributes["dilations"],
        attributes["auto_pad"],
    )
    # It stands for the graph's convolution in the engine's counters.
    levels.set_friendly_name(last.convolution.get_friendly_name())
    if last.bias is not None:
        shifted = (last.bias.astype(np.float64).reshape(-1) * to_white)[order].astype(np.float32)
        levels = ops.add(levels, shifted.reshape(1, -1, 1, 1))
    to_pixels = np.array([0, 2, 3, 1])
    if last.weights.scale is not None:
        # As a quantiser, clip and round become the last step of a convolution in INT8, which writes bytes then.
        low, high = np.float32(0), np.float32(WHITE)
        rounded = ops.convert(ops.fake_quantize(levels, low, high, low, high, int(WHITE) + 1), openvino.Type.u8)
        return [ops.transpose(rounded, to_pixels)]
    rounded = ops.convert(ops.round(ops.clamp(levels, 0.0, WHITE), "half_to_even"), openvino.Type.u8)
    return [ops.transpose(rounded, to_pixels), _guard(features)]


@dataclass(frozen=True)
class _Last:
    """The convolution before a pixel shuffle. block: the side of what a pixel becomes. bias: of so many channels."""

    convolution: Any
    block: int
    weights: _Weights
    bias: NDArray[Any] | None

    @classmethod
    def of(cls, result: Any) -> _Last | None:
        """None where the network ends otherwise, or not in float32."""
        import openvino

        shuffle = result.get_node()
        if shuffle.get_type_name() != "DepthToSpace" or shuffle.get_attributes()["mode"] != "depth_first":
            return None
        if result.get_element_type() != openvino.Type.f32:
            return None
        block = int(shuffle.get_attributes()["block_size"])
        convolution, bias = shuffle.input_value(0).get_node(), None
        if convolution.get_type_name() == "Add":
            bias = constant(convolution.input_value(1).get_node())
            convolution = convolution.input_value(0).get_node()
            if bias is None or bias.size != 3 * block**2:
                return None
        weights = _Weights.of(convolution.input_value(1).get_node()) if _is_convolution(convolution) else None
        return None if weights is None or len(weights.codes) != 3 * block**2 else cls(convolution, block, weights, bias)


def _is_convolution(node: Any) -> bool:
    return bool(node.get_type_name() == "Convolution")


@dataclass(frozen=True)
class _Weights:
    """A convolution's.

    codes: (O, I, H, W), float32, or integers with what undoes their quantisation. scale: of one number, or one for
    each output channel; None where the codes are the values. zero: as scale, or None.
    """

    codes: NDArray[Any]
    scale: NDArray[Any] | None = None
    zero: NDArray[Any] | None = None

    @classmethod
    def of(cls, node: Any) -> _Weights | None:
        """None where they are no constants, or quantised along another axis."""
        if node.get_type_name() != "Multiply":
            values = constant(node)
            return None if values is None else cls(values)
        scale, zero, codes = constant(node.input_value(1).get_node()), None, node.input_value(0).get_node()
        if codes.get_type_name() == "Subtract":
            zero = constant(codes.input_value(1).get_node())
            codes = codes.input_value(0).get_node()
            if zero is None:
                return None
        if codes.get_type_name() != "Convert" or scale is None:
            return None
        values = constant(codes.input_value(0).get_node())
        if values is None or any(part is not None and part.size not in (1, len(values)) for part in (scale, zero)):
            return None
        return cls(values, scale, zero)

    def scaled_and_ordered(self, factor: float, order: NDArray[np.int64]) -> Any:
        """A node of the weights times a factor, with their output channels in another order."""
        import openvino
        from openvino import opset13 as ops

        if self.scale is None:
            return ops.constant((self.codes.astype(np.float64) * factor)[order].astype(np.float32))

        def each(part: NDArray[Any]) -> NDArray[np.float32]:
            return np.broadcast_to(part.reshape(-1), len(order))[order].astype(np.float32).reshape(-1, 1, 1, 1)

        value = ops.convert(ops.constant(np.ascontiguousarray(self.codes[order])), openvino.Type.f32)
        if self.zero is not None and np.any(self.zero):
            value = ops.subtract(value, each(self.zero))
        return ops.multiply(value, each(self.scale.astype(np.float64) * factor))


def _guard(features: Any) -> Any:
    """The mean of each image's features: what is not finite here is not finite in the pixels made of it.

    Channels are summed by a convolution: a reduction over them would first reorder them all.
    """
    from openvino import opset13 as ops

    channels = features.get_partial_shape()[1].get_length()
    ones = np.full((1, channels, 1, 1), 1 / channels, np.float32)
    summed = ops.convolution(features, ones, [1, 1], [0, 0], [0, 0], [1, 1])
    return ops.reduce_mean(summed, np.array([1, 2, 3]))


def constant(node: Any) -> NDArray[Any] | None:
    """A constant's values, looking through reshapes and conversions."""
    while node.get_type_name() in ("Reshape", "Convert"):
        node = node.input_value(0).get_node()
    return np.asarray(node.data) if node.get_type_name() == "Constant" else None
