"""What an INT8 graph is judged by: FP32's results on images, and the engine that it will run in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from espan_deploy import backends
from espan_deploy.backends.base import Runner
from espan_deploy.backends.model import ModelFile
from espan_deploy.description import ModelDescription
from espan_deploy.precision.breakdown import sound_images
from espan_deploy.precision.gate import Comparison, compare_levels, graph_upscaler, runner_upscaler
from espan_deploy.precision.images import VerifyImage

AGREED_DB = 45.0
"""Between an engine and the graph's own arithmetic. They differ by a code here and there, which leaves 50 and more;
sums of bytes that overflow, as oneDNN's do on processors without VNNI, leave 27 to 39."""


class Judge:
    """FP32 in ONNX Runtime, on images.

    model, description: the float32 network. images: those on which FP32 itself breaks down are left out.
    engine: the backend that INT8 is judged and timed in, as long as it is here and right; "" for ONNX Runtime, which
    evaluates a quantised graph as it is written. notes: what the user should know.
    """

    def __init__(
        self, model: onnx.ModelProto, description: ModelDescription, images: Sequence[VerifyImage], engine: str
    ) -> None:
        self._described = replace(description, precision="int8")
        here = bool(engine) and backends.get(engine).unavailable_reason() is None
        self.engine = engine if here else ""
        self._images, self._levels, self.notes = sound_images(graph_upscaler(model, description), images)

    def settle(self, graph: onnx.ModelProto) -> None:
        """Try the engine on an INT8 graph; where it computes another picture than the graph says, do without it."""
        image = next((each for each in self._images if not each.stress), None)
        if not self.engine or image is None:
            return
        written = graph_upscaler(graph, self._described)(image.low)
        with self._opened(graph) as runner:
            apart_db = compare_levels([written], runner_upscaler(runner), [image]).psnr_db
        if apart_db < AGREED_DB:
            self.notes.append(
                f"on this processor {self.engine} is {apart_db:.0f} dB from what the INT8 graph says (without VNNI, "
                "sums of bytes overflow): ONNX Runtime judges instead, and nothing is timed"
            )
            self.engine = ""

    def compare(self, graph: onnx.ModelProto) -> Comparison:
        """An INT8 graph with FP32."""
        if not self.engine:
            return compare_levels(self._levels, graph_upscaler(graph, self._described), self._images)
        with self._opened(graph) as runner:
            return compare_levels(self._levels, runner_upscaler(runner), self._images)

    def _opened(self, graph: onnx.ModelProto) -> Runner:
        return open_int8(graph, self._described, self.engine)


def open_int8(graph: onnx.ModelProto, described: ModelDescription, engine: str) -> Runner:
    """A quantised graph in a backend. Raises as opening does."""
    file = ModelFile(Path("int8.onnx"), graph.SerializeToString(deterministic=True), described)
    return backends.get(engine).open(file, precision="int8")
