"""What runs inside Triton's Python backend: the front that takes pictures, and tiles by our own engines.

Triton calls ``initialize``, ``execute`` and ``finalize``, and brings the module ``triton_python_backend_utils``.
Arrays pass by DLPack: the stub's own conversion was built for numpy 1, and gives the first byte over and over with
numpy 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from espan_deploy import backends
from espan_deploy.backends.base import EngineInfo, Images, Runner, scaled
from espan_deploy.backends.model import ModelFile, read_model
from espan_deploy.errors import EspanDeployError, InferenceError
from espan_deploy.pipeline.engine import EngineSettings, OpenEngine
from espan_deploy.pipeline.infer import Fallback, Lane
from espan_deploy.pipeline.plan import TilePolicy
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.tiles import plan_tiles
from espan_deploy.pipeline.work import Region, Work
from espan_deploy.serve.desk import Desk, Limits, TicketOutput, format_named
from espan_deploy.serve.triton import MODEL_FILE, VERSION


def utilities() -> Any:
    """Triton's module for models in Python."""
    return import_module("triton_python_backend_utils")


def model_of(args: dict[str, str]) -> ModelFile:
    """The ONNX file beside a model's ``model.py``."""
    return read_model(Path(args["model_repository"], args.get("model_version", VERSION), MODEL_FILE))


class TilesRunner(Runner):
    """The model of tiles, called by way of Triton, which batches them with those of other requests."""

    def __init__(self, model: ModelFile, name: str, batch: int) -> None:
        self.description = model.description
        self.info = EngineInfo("triton", "", name, model.description.precision)
        self.name, self.batch = name, batch

    def _infer(self, images: Images) -> Images:
        pb = utilities()
        parts = []
        for low in range(0, len(images), self.batch):
            # A copy: DLPack cannot say that an array is not to be written to.
            tensor = pb.Tensor.from_dlpack("input", images[low : low + self.batch].copy())
            request = pb.InferenceRequest(model_name=self.name, requested_output_names=["output"], inputs=[tensor])
            response = request.exec()
            if response.has_error():
                raise InferenceError(f"{self.name} failed in Triton: {response.error().message()}")
            parts.append(np.from_dlpack(pb.get_output_tensor_by_name(response, "output")))
        return np.concatenate(parts)


class Front:
    """A picture as bytes in, a picture as bytes out: what the command line would write."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model's description; what it is to be computed with is in the configuration."""
        parameters = json.loads(args["model_config"])["parameters"]
        given = {key: value["string_value"] for key, value in parameters.items()}
        model = model_of(args)
        self.description = model.description
        self.batch = int(given["batch"])
        self.tiles = TilePolicy(int(given["tile"]), 0, full=True)
        self.lane = Lane(TilesRunner(model, given["tiles"], self.batch), Fallback(None))
        self.desk = Desk(Limits(deadline_seconds=math.inf), lambda: 0.0)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request; what is wrong with a picture is its response's error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        pb = utilities()
        picture = np.from_dlpack(pb.get_input_tensor_by_name(request, "picture")).tobytes()
        name = json.loads(request.parameters() or "{}").get("format")
        try:
            data = self.upscaled(picture, name)
        except (EspanDeployError, OSError, MemoryError) as exc:
            return pb.InferenceResponse(error=pb.TritonError(getattr(exc, "message", None) or str(exc)))
        return pb.InferenceResponse([pb.Tensor.from_dlpack("picture", np.frombuffer(bytearray(data), np.uint8))])

    def upscaled(self, data: bytes, format_name: str | None) -> bytes:
        """The picture enlarged, through the stages' own pieces. Raises InputError, InferenceError."""
        named = None if format_name in (None, "same") else format_named(str(format_name))
        job = self.desk.ticket(data, format_name=named).job(1)
        assert isinstance(job.output, TicketOutput)
        job.output.is_done(job.input)
        picture = job.input.picture()
        height, width, scale = picture.height, picture.width, self.description.scale
        report = FileReport("picture", "picture", "not started")
        rows = self.tiles.plan(height, width, self.description)
        cut = Work(job, report, picture, lanes=[self.lane], rows=rows, scale=scale, held_bytes=0)
        canvas = np.empty((height * scale, width * scale, 3), picture.color.dtype)
        for batch in alike(list(cut.regions), self.batch):
            results, _ = self.lane.upscale([region.array() for region in batch], batch[0].kept, None)
            for region, result in zip(batch, results, strict=True):
                assert result is not None, "there was no target to put it in"
                canvas[kept_place(region, scale)] = result[scaled(region.kept, scale)]
        # Encoded in one piece, as the command does where it need not cut: the same bytes.
        one = plan_tiles(height, width, (height, width), 0)
        whole = Work(job, report, picture, lanes=[self.lane], rows=one, scale=scale, held_bytes=0)
        for region in whole.regions:
            whole.place(region, canvas, 0.0)
        whole.encode(0)
        whole.publish()
        return job.output.data()


def kept_place(region: Region, scale: int) -> tuple[slice, slice]:
    """Where a region's kept pixels stand in the whole result."""
    rows, columns = region.tile.rows, region.tile.columns
    return slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)


def alike(regions: Sequence[Region], most: int) -> Iterator[list[Region]]:
    """Regions in order, those of one size that follow each other together."""
    batch: list[Region] = []
    for region in regions:
        if batch and (region.key != batch[0].key or len(batch) == most):
            yield batch
            batch = []
        batch.append(region)
    if batch:
        yield batch


class Tiles:
    """Tiles by the engine that espan-deploy chooses."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine."""
        model = model_of(args)
        settings = EngineSettings(batch=1)
        self.engine = OpenEngine(model, backends.choose("auto", model), settings, at_once=1)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Requests of one size in one engine call, as Triton gives them."""
        pb = utilities()
        arrays = [np.from_dlpack(pb.get_input_tensor_by_name(request, "input")) for request in requests]
        try:
            results = self.engine.runners[0].infer(np.concatenate(arrays))
        except EspanDeployError as exc:
            return [pb.InferenceResponse(error=pb.TritonError(exc.message)) for _ in requests]
        ends = np.cumsum([len(array) for array in arrays])[:-1]
        parts = np.split(results, ends)
        return [pb.InferenceResponse([pb.Tensor.from_dlpack("output", part)]) for part in parts]

    def finalize(self) -> None:
        """Close the engine."""
        self.engine.close()
