"""The halo, against what changes when one pixel does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sized import STRUCTURES
from torch import Tensor, nn
from torch.nn import functional as F

from espan_deploy.fold import fold
from espan_deploy.graph import SizedGraph, reach
from espan_deploy.networks.rlfn.efdn import EFDN
from espan_deploy.networks.span.espan import ESPAN
from espan_deploy.networks.span.span import SPAN
from espan_deploy.onnx_export import onnx_from_module

CHANNELS = 3


class Drawn:
    """A random network: shift-invariant layers of positive weights, so that no path cancels another."""

    def __init__(self) -> None:
        self.nodes: list[object] = []
        self.weights: list[object] = []
        self.value = "input"
        self.random = np.random.default_rng(0)

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op_type: str, inputs: list[str], **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))  # type: ignore[arg-type]
        return name

    def conv(self, x: str, kernel: tuple[int, int], dilation: int, top_left: tuple[int, int]) -> str:
        spans = [(k - 1) * dilation for k in kernel]
        begins = [min(b, span) for b, span in zip(top_left, spans, strict=True)]
        weight = self.random.uniform(0.5, 1, (CHANNELS, CHANNELS, *kernel)) / (CHANNELS * kernel[0] * kernel[1])
        pads = [*begins, *(span - begin for begin, span in zip(begins, spans, strict=True))]
        name = self.constant(weight.astype(np.float32))
        return self.add("Conv", [x, name], pads=pads, dilations=[dilation, dilation])

    def model(self) -> ir.Model:
        shapes = [(name, [1, CHANNELS, "h", "w"]) for name in ("input",)]
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
        out = helper.make_tensor_value_info(self.value, TensorProto.FLOAT, [1, None, None, None])
        graph = helper.make_graph(self.nodes, "drawn", inputs, [out], self.weights)  # type: ignore[arg-type]
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    drawn = Drawn()
    step = st.sampled_from(["conv", "branch", "pad", "sigmoid", "up", "down"])
    scales = []
    for kind in draw(st.lists(step, min_size=1, max_size=5)):
        x = drawn.value
        kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        begins = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
        if kind == "conv":
            drawn.value = drawn.conv(x, kernel, draw(st.integers(1, 2)), begins)
        elif kind == "branch":
            drawn.value = drawn.add("Add", [drawn.conv(x, kernel, 1, begins), x])
        elif kind == "sigmoid":
            drawn.value = drawn.add("Sigmoid", [x])
        elif kind == "pad":
            widths = drawn.constant(np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64))
            weight = drawn.constant(np.full((CHANNELS, CHANNELS, 4, 4), 1 / 48, np.float32))
            drawn.value = drawn.add("Conv", [drawn.add("Pad", [x, widths]), weight])
        elif kind == "up":
            scales.append(2)
            many = drawn.constant(drawn.random.uniform(0.5, 1, (CHANNELS * 4, CHANNELS, 1, 1)).astype(np.float32))
            drawn.value = drawn.add("DepthToSpace", [drawn.add("Conv", [x, many])], blocksize=2, mode="CRD")
        elif np.prod(scales, initial=1.0) > 1 / 2:
            scales.append(1 / 2)
            few = drawn.constant(drawn.random.uniform(0.05, 0.1, (CHANNELS, CHANNELS * 4, 1, 1)).astype(np.float32))
            drawn.value = drawn.add("Conv", [drawn.add("SpaceToDepth", [x], blocksize=2), few])
    if drawn.value == "input":
        drawn.value = drawn.add("Sigmoid", ["input"])
    return drawn.model()


@settings(max_examples=40)
@given(networks(), st.integers(0, 3))
def test_nothing_beyond_the_halo_changes(model: ir.Model, offset: int) -> None:
    seen = reach(SizedGraph(model))
    assert seen.halo is not None
    size = 2 * seen.halo + 8
    size += -size % 4
    at = size // 2 + offset - 2
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    image = np.random.default_rng(1).random((1, CHANNELS, size, size), np.float32)
    touched = image.copy()
    touched[0, :, at, at] += 1
    before, after = (session.run(None, {"input": x})[0] for x in (image, touched))

    changed = np.abs(after - before).max(axis=(0, 1)) > 0
    rows, columns = np.nonzero(changed)
    scale = before.shape[2] / size
    assert len(rows) > 0
    # The input pixel under an output pixel; tiles begin at whole multiples, so that of its block counts.
    under = np.floor(np.concatenate([rows, columns]) / scale).astype(int)
    block = under - under % seen.tile_multiple
    assert (at >= block - seen.halo).all()
    assert (at < block + seen.tile_multiple + seen.halo).all()


class Resized(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 12, 3, padding=1), how

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2) + self.how(x)


def test_espan_sees_23_pixels() -> None:
    assert reach(SizedGraph(fold(onnx_from_module(ESPAN().eval())).model)).halo == 23


def test_folding_keeps_the_halo() -> None:
    model = onnx_from_module(SPAN(channels=6, blocks=2).eval())

    assert reach(SizedGraph(model)) == reach(SizedGraph(fold(model).model))


@pytest.mark.parametrize(("mode", "halo"), [("nearest", 1), ("bilinear", 1), ("bicubic", 2)])
def test_an_interpolated_shortcut_is_bounded(mode: str, halo: int) -> None:
    module = Resized(lambda x: F.interpolate(x, scale_factor=2, mode=mode)).eval()

    seen = reach(SizedGraph(onnx_from_module(module)))

    assert (seen.halo, seen.tile_multiple) == (halo, 1)


BOUNDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    # halo, and the multiple at which tiles start
    "reflect padding": (lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), (1, 1)),
    "strided": (lambda: nn.Sequential(nn.Conv2d(3, 12, 4, stride=2, padding=1), nn.PixelShuffle(2)), (2, 2)),
    "windows of 4": (STRUCTURES["windows"][0], (5, 4)),
    "a u shape": (STRUCTURES["u shape"][0], (4, 2)),
    "blocks as channels": (STRUCTURES["channel shuffled"][0], (5, 2)),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_windows_and_strides_are_bounded_where_tiles_start_with_them(name: str) -> None:
    make, expected = BOUNDED[name]

    seen = reach(SizedGraph(onnx_from_module(make().eval(), traced=(24, 40))), multiple=4, least=4)

    assert (seen.halo, seen.tile_multiple) == expected


UNBOUNDED: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    # why, and how far the rest sees
    "esa": (lambda: EFDN(channels=8), "depend on the image's size", 150),
    "global pooling": (lambda: Resized(lambda x: x.mean((2, 3), keepdim=True)), "sees the whole image", 1),
    "aligned corners": (
        lambda: Resized(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)),
        "depend on the image's size",
        1,
    ),
    "attention over pixels": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Softmax(dim=3)), "sees the whole image", 0),
    "shifted windows that wrap around": (STRUCTURES["windows, shifted"][0], "sees the whole image", 5),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_sees_the_whole_image_says_by_what(name: str) -> None:
    make, why, local = UNBOUNDED[name]

    seen = reach(SizedGraph(onnx_from_module(make().eval())))

    assert seen.halo is None
    assert why in seen.why
    assert seen.local_halo == local


def test_a_graph_of_one_size_is_followed_at_that_size() -> None:
    conv, pool = (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), tail) for tail in (nn.ReLU(), nn.AdaptiveAvgPool2d(1)))

    near, all_over = (reach(SizedGraph(onnx_from_module(m.eval(), traced=(24, 40), static=True))) for m in (conv, pool))

    assert (near.halo, near.tile_multiple) == (1, 1)
    assert all_over.halo is None


def test_space_to_depth_asks_for_whole_blocks() -> None:
    drawn = Drawn()
    drawn.value = drawn.add("SpaceToDepth", ["input"], blocksize=4)

    seen = reach(SizedGraph(drawn.model()))

    assert (seen.tile_multiple, seen.halo) == (4, 3)
