"""What a model says of itself: the metadata an exported ONNX file carries, so that running it needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from espan_deploy.errors import ExportError

METADATA_KEY = "espan_deploy"
"""The one metadata entry we write: a JSON document."""

SCHEMA_VERSION = 1

Pixels = Literal["uint8", "float32", "float16"]
"""What goes in and comes out: uint8 is (N, H, W, 3) in [0, 255]; the floats are (N, 3, H, W) in [0, value_range]."""

Padding = Literal["edge", "reflect"]
"""With its last pixel, repeated, or with its mirror image."""


@dataclass(frozen=True)
class ModelDescription:
    """What a user of the model must know.

    network, title: the catalogue's name and title, or those of a user's class or file.
    halo: low-resolution pixels around a tile that its result depends on, where tiles start at multiples of
        tile_multiple; None where no halo is enough: halo_reason says then why, and local_halo how far the operators
        see that do not see the whole image.
    size_multiple, min_size: height and width must be multiples of the one and at least the other (1: any size).
    fixed_size: the only height and width the graph takes, or None.
    padding: what an image of another size is continued with, on its right and lower side, before it goes in.
    max_batch: images a call takes at most, None for any number.
    verified_at: batch, height and width of the images on which the model was compared with its network.
    value_range: the value of white in float pixels.
    parameters, multiply_adds: of the graph as it is in the file, multiply-adds of one 256x256 image, None where they
        are unknown because sizes inside depend on pixels.
    float_sha256: in INT8, of the bytes of the FP32 file it was made of.
    unfolded: the same two and "convolutions" before folding, empty where nothing is known of it.
    """

    network: str
    title: str
    scale: int
    halo: int | None
    tile_multiple: int = 1
    local_halo: int = 0
    halo_reason: str = ""
    value_range: float = 1.0
    size_multiple: int = 1
    min_size: int = 1
    fixed_size: tuple[int, int] | None = None
    padding: Padding = "edge"
    max_batch: int | None = None
    verified_at: tuple[tuple[int, int, int], ...] = ()
    color_order: Literal["RGB", "BGR"] = "RGB"
    pixels: Pixels = "float32"
    precision: str = "fp32"
    form: str = "deploy"
    parameters: int = 0
    multiply_adds: int | None = 0
    convolutions: int = 0
    source: str = ""
    source_sha256: str = ""
    float_sha256: str = ""
    unfolded: Mapping[str, int | None] = field(default_factory=dict)
    fold_report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tile_step(self) -> int:
        """Tiles start at multiples of this: as their result, and the sizes the network takes, ask for."""
        return math.lcm(self.size_multiple, self.tile_multiple)

    def to_metadata(self) -> dict[str, str]:
        """The ONNX metadata that :func:`description_from_metadata` reads back."""
        return {METADATA_KEY: json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, sort_keys=True)}


def description_from_document(document: Mapping[str, Any]) -> ModelDescription:
    """The description in a parsed JSON document; names it does not know are left out. Raises TypeError."""
    known = {f.name for f in fields(ModelDescription)}
    values = {key: value for key, value in document.items() if key in known}
    if values.get("fixed_size") is not None:
        values["fixed_size"] = tuple(values["fixed_size"])
    values["verified_at"] = tuple(map(tuple, values.get("verified_at", ())))
    return ModelDescription(**values)


def description_from_metadata(metadata: Mapping[str, str]) -> ModelDescription | None:
    """The description in an ONNX file's metadata, or None where it carries none of ours.

    Raises ExportError where it is of a newer schema or damaged.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        document = json.loads(text)
        version = document.pop("schema_version")
        if version > SCHEMA_VERSION:
            raise ExportError(
                f"the model's description is of schema {version}, this version reads up to {SCHEMA_VERSION}",
                hint="update espan-deploy, or export the model again",
            )
        return description_from_document(document)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ExportError(f"the model's description is damaged: {exc}", hint="export the model again") from exc
