"""A model repository for NVIDIA's Triton inference server: a model of tiles, and a front that takes whole pictures.

Triton batches requests of equal shape, so the front cuts pictures into tiles of one size, which then share engine calls
with those of other requests. Both are described as Triton's ``model_config.proto`` has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from espan_deploy.backends.model import ModelFile
from espan_deploy.engine.build import graph_from_onnx
from espan_deploy.errors import ExportError
from espan_deploy.files import write_atomically
from espan_deploy.recipes import Recipe

TileBackend = Literal["onnxruntime", "python"]
"""Who computes tiles: Triton's ONNX Runtime, or espan-deploy's own engines in a Python model."""

VERSION = "1"
"""Of both models; Triton names their folders so."""

MODEL_FILE = "model.onnx"

FRONT = """\
name: "{name}"
backend: "python"
max_batch_size: 0
input [ {{ name: "picture" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
output [ {{ name: "picture" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 2 }} ]
parameters [
  {{ key: "tiles" value: {{ string_value: "{tiles}" }} }},
  {{ key: "tile" value: {{ string_value: "{tile}" }} }},
  {{ key: "batch" value: {{ string_value: "{batch}" }} }}
]
"""

TILES = """\
name: "{name}"
backend: "{backend}"
max_batch_size: {batch}
input [ {{ name: "{input}" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }} ]
output [ {{ name: "{output}" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 2000 }}
instance_group [ {{ kind: {kind} count: 1 }} ]
model_warmup [ {{
  name: "tile"
  batch_size: 1
  inputs {{ key: "{input}" value: {{ data_type: TYPE_UINT8 dims: [ {tile}, {tile}, 3 ] random_data: true }} }}
}} ]
"""

FRONT_MODEL = '''"""Whole pictures in, whole pictures out; needs espan-deploy in Triton's Python."""

from espan_deploy.serve.triton_models import Front as TritonPythonModel  # noqa: F401
'''

TILES_MODEL = '''"""Tiles, by espan-deploy's own engines; needs it in Triton's Python."""

from espan_deploy.serve.triton_models import Tiles as TritonPythonModel  # noqa: F401
'''


def write_repository(
    model: ModelFile, folder: Path, *, tile: int = 256, batch: int = 8, backend: TileBackend = "onnxruntime"
) -> list[Path]:
    """Write both models, named after the model's file, into a repository's folder, which may hold others.

    Returns the files written. tile: side of the tiles, halo included. batch: tiles in one engine call at most.
    Raises ExportError where the network sees the whole image: such tiles would not be exact.
    """
    if model.description.halo is None:
        raise ExportError(
            f"{model.description.title} sees the whole image, so tiles of it are not exact",
            hint="serve it with `espan-deploy serve`",
        )
    front, tiles = model.path.stem, f"{model.path.stem}_tiles"
    # The front reads what the model says of itself, and tiles go in and out as bytes.
    graph, _ = graph_from_onnx(model, Recipe("triton", "Tiles in Triton", "onnxruntime", "fp32", "uint8"))
    names = {"input": graph.graph.input[0].name, "output": graph.graph.output[0].name}
    kind = "KIND_CPU" if backend == "python" else "KIND_AUTO"
    written = {
        f"{front}/config.pbtxt": FRONT.format(name=front, tiles=tiles, tile=tile, batch=batch).encode(),
        f"{front}/{VERSION}/model.py": FRONT_MODEL.encode(),
        f"{front}/{VERSION}/{MODEL_FILE}": model.data,
        f"{tiles}/config.pbtxt": TILES.format(
            name=tiles, backend=backend, tile=tile, batch=batch, kind=kind, **names
        ).encode(),
    }
    if backend == "python":
        written[f"{tiles}/{VERSION}/model.py"] = TILES_MODEL.encode()
        written[f"{tiles}/{VERSION}/{MODEL_FILE}"] = model.data
    else:
        written[f"{tiles}/{VERSION}/{MODEL_FILE}"] = graph.SerializeToString(deterministic=True)
    for name, content in written.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return [folder / name for name in written]
