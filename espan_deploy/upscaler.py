"""The library's front door: pictures in, larger pictures out, through the same stages as the command."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from espan_deploy import backends
from espan_deploy.backends.model import read_model
from espan_deploy.errors import InputError, InputShapeError
from espan_deploy.files import display
from espan_deploy.models import default_model, model_file
from espan_deploy.pipeline import exif as exif_block
from espan_deploy.pipeline.decode import decode, picture_from_image
from espan_deploy.pipeline.decoded import PictureInput, PixelOutput
from espan_deploy.pipeline.engine import EngineSettings, OpenEngine
from espan_deploy.pipeline.jobs import Job
from espan_deploy.pipeline.picture import Picture, Pixels, fill_transparent, to_levels
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.run import Run
from espan_deploy.stores.folder import read_file

Array: TypeAlias = NDArray[Any]
PathLike: TypeAlias = "str | os.PathLike[str]"
Given: TypeAlias = "Array | Image.Image | PathLike"


class Upscaler:
    """An engine, opened, that enlarges what it is called with. Use as a context manager, or close it.

    model: an ONNX file or an engine, or "photo" for compressed photographs; None for "clean", which is for pictures as
    they are (what they were before, only a file's head tells: the command looks there). engine, precision: as of the
    command: "auto" takes the fastest that this machine has, whose results are close to FP32's. tile: "auto", "none"
    or a side in pixels; the result is the same. memory: bytes for images in flight and activations. batch: images
    per engine call. threads: for everything. None leaves each to this machine.

    Calls from several threads wait for each other. Raises ExportError, BackendUnavailableError or EngineBuildError
    where the engine cannot be opened.
    """

    def __init__(
        self,
        model: PathLike | None = None,
        *,
        engine: str = "auto",
        precision: str = "auto",
        tile: int | str = "auto",
        memory: int | None = None,
        batch: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._settings = EngineSettings(engine, precision, tile, memory, batch, threads)
        self._model = read_model(model_file(model) if model is not None else default_model())
        self._choice = backends.choose(engine, self._model)
        self._engines: dict[int | None, OpenEngine] = {}
        self._lock = threading.Lock()
        self._opened(1)

    def _opened(self, at_once: int | None) -> OpenEngine:
        """For one image on all threads, or (None) for as many at once as there are threads."""
        if at_once not in self._engines:
            self._engines[at_once] = OpenEngine(self._model, self._choice, self._settings, at_once=at_once)
        return self._engines[at_once]

    @property
    def scale(self) -> int:
        """How many times larger results are, in each direction."""
        return self._model.description.scale

    @property
    def engine(self) -> dict[str, Any]:
        """Which engine and precision it runs in, and why."""
        return self._opened(1).report()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine. Twice does no harm."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    # A string is a sequence of strings to mypy, so the second and the fourth overlap; the second comes first.
    @overload
    def __call__(self, images: Array) -> Array: ...
    @overload
    def __call__(self, images: Image.Image | PathLike) -> Image.Image: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[Array]) -> list[Array]: ...
    @overload
    def __call__(self, images: Sequence[Image.Image | PathLike]) -> list[Image.Image]: ...
    @overload
    def __call__(self, images: Sequence[Given]) -> list[Array | Image.Image]: ...

    def __call__(self, images: Given | Sequence[Given]) -> Any:
        """One image enlarged, or a list of them, which share engine calls where their sizes are equal.

        An array is (H, W) or (H, W, C) with one to four channels (grey, grey and alpha, RGB, RGBA), or a batch
        (N, H, W, C) of those; uint8, uint16, or floating point in [0, 1]. Its result is an array of as many
        dimensions, uint8, uint16 or float32.
        A Pillow image or a path gives a Pillow image in L, LA, RGB or RGBA, or in I;16 for 16 bits of grey (Pillow has
        no 16 bits of colour), with its profile, EXIF and resolution; EXIF's orientation is applied.
        Raises InputError for what cannot be read, InferenceError where the engine fails; in a list, the first failure.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return np.stack(self._upscaled(list(images)))
        if isinstance(images, np.ndarray | Image.Image | str | os.PathLike):
            return self._upscaled([images])[0]
        return self._upscaled(list(images))

    def _upscaled(self, images: list[Given]) -> list[Any]:
        results: dict[int, Array | Image.Image] = {}
        failures: dict[int, BaseException] = {}
        items = [_item(given, f"image {number}", self.scale) for number, given in enumerate(images, 1)]

        def job(number: int, item: _Item) -> Job:
            def deliver(pixels: Pixels) -> None:
                results[number] = item.result(pixels)

            return Job(number, item, PixelOutput(item.name, deliver))

        def on_end(job: Job, _: FileReport, exc: BaseException | None) -> None:
            if exc is not None:
                failures[job.number] = exc

        with self._lock:
            engine = self._opened(self._at_once(items))
            Run(
                map(job, range(len(items)), items),
                runners=engine.runners,
                fallback=engine.fallback,
                settings=engine.run_settings(),
                on_end=on_end,
            ).execute()
        if failures:
            raise failures[min(failures)]
        return [results[number] for number in range(len(items))]

    def _at_once(self, items: list[_Item]) -> int | None:
        if len(items) != 1:
            return None
        tiles = self._settings.tiles(*items[0].size(), self._model.description)
        return 1 if tiles == 1 else None


class _Item(ABC):
    """Something that was given: an input of the stages, and what its result is to look like."""

    def __init__(self, name: str, scale: int) -> None:
        self.name, self.scale = name, scale
        self._picture: Picture | None = None

    @abstractmethod
    def made(self) -> Picture:
        """The picture."""

    @abstractmethod
    def result(self, pixels: Pixels) -> Array | Image.Image:
        """The enlarged pixels, as whoever gave the item expects them."""

    def sha256(self) -> str:
        """Of the picture."""
        return PictureInput(self.name, self._at_hand()).sha256()

    def size(self) -> tuple[int, int]:
        """Height and width."""
        picture = self._at_hand()
        return picture.height, picture.width

    def picture(self) -> Picture:
        """The picture; forgotten."""
        picture, self._picture = self._at_hand(), None
        return picture

    def _at_hand(self) -> Picture:
        if self._picture is None:
            try:
                self._picture = self.made()
            except OSError as exc:
                raise InputError(f"cannot read {self.name}: {exc.strerror or exc}") from exc
            except InputError as exc:
                raise type(exc)(f"{self.name}: {exc.message}", hint=exc.hint) from exc
        return self._picture


class _ArrayItem(_Item):
    """An array, whose result is one."""

    def __init__(self, array: Array, name: str, scale: int) -> None:
        super().__init__(name, scale)
        self.array = array

    def made(self) -> Picture:
        """Its planes."""
        array = self.array
        planes = array[..., None] if array.ndim == 2 else array
        if planes.ndim != 3 or planes.shape[2] not in (1, 2, 3, 4) or 0 in planes.shape:
            raise InputShapeError(
                f"an array of shape {array.shape} is no image", hint="give (H, W) or (H, W, C) with 1 to 4 channels"
            )
        if array.dtype == np.uint16:
            planes = planes.astype(np.float32) / np.float32(65535)
        elif np.issubdtype(array.dtype, np.floating):
            planes = planes.astype(np.float32)
        elif array.dtype != np.uint8:
            raise InputShapeError(
                f"an array of {array.dtype} is no image", hint="give uint8, uint16, or floating point in [0, 1]"
            )
        channels = planes.shape[2]
        color = np.ascontiguousarray(planes[..., 0] if channels < 3 else planes[..., :3])
        alpha = np.ascontiguousarray(planes[..., -1]) if channels in (2, 4) else None
        if alpha is not None:
            color = fill_transparent(color, alpha)
        return Picture(color, alpha, 8 if planes.dtype == np.uint8 else 16, "")

    def result(self, pixels: Pixels) -> Array:
        """In the array's own kind."""
        if self.array.dtype == np.uint16:
            pixels = to_levels(pixels, np.uint16)
        elif pixels.dtype != np.uint8:
            pixels = pixels.clip(0, 1)
        return pixels if pixels.ndim == self.array.ndim else pixels[..., None]


class _ImageItem(_Item):
    """A Pillow image, or a file; the result is a Pillow image."""

    def __init__(self, given: Image.Image | PathLike, name: str, scale: int) -> None:
        super().__init__(name if isinstance(given, Image.Image) else display(os.fspath(given)), scale)
        self.given = given
        self.info: dict[str, Any] = {}

    def made(self) -> Picture:
        """Decoded; what the result's ``info`` will say is kept."""
        if isinstance(self.given, Image.Image):
            picture = picture_from_image(self.given)
        else:
            picture = decode(read_file(Path(self.given)))
        scale = self.scale
        if picture.icc:
            self.info["icc_profile"] = picture.icc
        if picture.exif:
            height, width = picture.height * scale, picture.width * scale
            self.info["exif"] = exif_block.with_prefix(exif_block.resized(picture.exif, width, height, scale))
        if picture.dpi is not None:
            self.info["dpi"] = (picture.dpi[0] * scale, picture.dpi[1] * scale)
        return picture

    def result(self, pixels: Pixels) -> Image.Image:
        """In the mode for its channels."""
        if pixels.dtype != np.uint8:
            pixels = to_levels(pixels, np.uint16 if pixels.ndim == 2 else np.uint8)
        image = Image.fromarray(pixels)
        image.info.update(self.info)
        return image


def _item(given: Given, name: str, scale: int) -> _Item:
    if isinstance(given, np.ndarray):
        return _ArrayItem(given, name, scale)
    if isinstance(given, Image.Image | str | os.PathLike):
        return _ImageItem(given, name, scale)
    raise InputError(f"{name} is a {type(given).__name__}", hint="give an array, a Pillow image or a path")
