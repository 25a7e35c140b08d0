"""PyTorch as the baseline: a network as its authors run it, and a folded graph in the same framework.

Not a backend: nobody should deploy this way. It shows what folding and an engine are worth, each on its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from espan_deploy.backends.base import EngineInfo, Images, Runner
from espan_deploy.backends.model import ModelFile
from espan_deploy.description import ModelDescription
from espan_deploy.errors import ExportError, InferenceError

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn


class TorchRunner(Runner):
    """A module as a runner. last_stages_ms: of the last call, layout and scaling apart from the network."""

    def __init__(
        self, module: Callable[[torch.Tensor], torch.Tensor], description: ModelDescription, threads: int
    ) -> None:
        import torch

        self._module, self._torch = module, torch
        self._threads = threads
        self.description = description
        self.info = EngineInfo("torch", torch.__version__, "CPU", "fp32", threads=threads)
        self.last_stages_ms: dict[str, float] = {}

    def _infer(self, images: Images) -> Images:
        torch = self._torch
        torch.set_num_threads(self._threads)
        description = self.description
        order = [2, 1, 0] if description.color_order == "BGR" else [0, 1, 2]
        white = 255.0 if images.dtype == np.uint8 else 1.0
        times = [time.perf_counter()]
        with torch.inference_mode():
            planes = torch.from_numpy(images if images.flags.writeable else images.copy()).permute(0, 3, 1, 2)[:, order]
            x = planes.contiguous().float() * (description.value_range / white)
            times.append(time.perf_counter())
            try:
                y = self._module(x)
            except RuntimeError as exc:
                raise InferenceError(f"PyTorch failed on {images.shape}: {str(exc).splitlines()[0]}") from exc
            times.append(time.perf_counter())
            y = (y * (white / description.value_range))[:, order].permute(0, 2, 3, 1)
            y = y.clamp(0, 255).round().to(torch.uint8) if white != 1 else y
            result: Images = y.contiguous().numpy()
            times.append(time.perf_counter())
        names = ("prepare", "network", "finish")
        self.last_stages_ms = {n: 1e3 * (b - a) for n, a, b in zip(names, times, times[1:], strict=False)}
        return result


def torch_runner(module: nn.Module, description: ModelDescription, threads: int) -> TorchRunner:
    """A module as a runner."""
    return TorchRunner(module, description, threads)


def graph_module(file: ModelFile) -> nn.Module:
    """A folded graph as a PyTorch module, operator by operator.

    Raises ExportError where the graph has an operator this does not know.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    proto = onnx.load_from_string(file.data)
    unknown = sorted({node.op_type for node in proto.graph.node} - set(_OPERATORS))
    if unknown:
        raise ExportError(f"{file.path.name} has operators that the PyTorch baseline does not know: {unknown}")

    last_use = {name: index for index, node in enumerate(proto.graph.node) for name in node.input}
    last_use |= dict.fromkeys((value.name for value in proto.graph.output), len(proto.graph.node))

    class GraphModule(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constants = {
                t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in proto.graph.initializer
            }

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: dict[str, Any] = {**self.constants, proto.graph.input[0].name: x, "": None}
            for index, node in enumerate(proto.graph.node):
                inputs = [values[name] for name in node.input]
                values[node.output[0]] = _OPERATORS[node.op_type](inputs, _attributes(node))
                # As a module would: held to the end, every activation would have to be allocated anew, which is slow.
                for name in {name for name in node.input if last_use[name] == index}:
                    del values[name]
                del inputs
            result: torch.Tensor = values[proto.graph.output[0].name]
            return result

    return GraphModule()


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _conv(inputs: list[Any], attributes: dict[str, Any]) -> Any:
    import torch

    pads = attributes.get("pads", [0, 0, 0, 0])
    x = torch.nn.functional.pad(inputs[0], (pads[1], pads[3], pads[0], pads[2])) if pads[:2] != pads[2:] else inputs[0]
    return torch.nn.functional.conv2d(
        x,
        inputs[1],
        inputs[2] if len(inputs) > 2 else None,
        stride=attributes.get("strides", [1, 1]),
        padding=pads[:2] if pads[:2] == pads[2:] else 0,
        dilation=attributes.get("dilations", [1, 1]),
        groups=attributes.get("group", 1),
    )


def _depth_to_space(inputs: list[Any], attributes: dict[str, Any]) -> Any:
    import torch

    if attributes.get("mode", b"DCR") != b"CRD":
        raise ExportError("DepthToSpace of another mode than CRD")
    return torch.nn.functional.pixel_shuffle(inputs[0], attributes["blocksize"])


def _torch(name: str) -> Callable[[list[Any], dict[str, Any]], Any]:
    def call(inputs: list[Any], _attributes: dict[str, Any]) -> Any:
        import torch

        return getattr(torch, name)(*inputs)

    return call


def _concat(inputs: list[Any], attributes: dict[str, Any]) -> Any:
    import torch

    return torch.cat(inputs, attributes["axis"])


def _leaky_relu(inputs: list[Any], attributes: dict[str, Any]) -> Any:
    import torch

    return torch.nn.functional.leaky_relu(inputs[0], attributes.get("alpha", 0.01))


def _gelu(inputs: list[Any], attributes: dict[str, Any]) -> Any:
    import torch

    return torch.nn.functional.gelu(inputs[0], approximate=attributes.get("approximate", b"none").decode())


_OPERATORS: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "Concat": _concat,
    "LeakyRelu": _leaky_relu,
    "Gelu": _gelu,
    "Identity": lambda inputs, _: inputs[0],
    **{op: _torch(op.lower()) for op in ("Add", "Sub", "Mul", "Div", "Sigmoid", "Relu", "Tanh", "Erf")},
}
