"""The library's front door: pictures in, larger pictures out, through the same stages as the command."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from espan_deploy.errors import InputError, InputShapeError
from espan_deploy.files import display
from espan_deploy.models import model_file
from espan_deploy.pipeline import exif as exif_block
from espan_deploy.pipeline.choice import fitting_model
from espan_deploy.pipeline.decode import picture_from_image
from espan_deploy.pipeline.decoded import PictureInput, PixelOutput
from espan_deploy.pipeline.encoded import FileInput
from espan_deploy.pipeline.engine import EngineSettings
from espan_deploy.pipeline.jobs import Job, Taken
from espan_deploy.pipeline.opened import OpenModels, read_models
from espan_deploy.pipeline.origin import Origin, origin_of
from espan_deploy.pipeline.picture import Picture, Pixels, fill_transparent, to_levels
from espan_deploy.pipeline.report import FileReport
from espan_deploy.pipeline.run import Run
from espan_deploy.stores import Entry
from espan_deploy.stores.folder import FolderReader

Array: TypeAlias = NDArray[Any]
PathLike: TypeAlias = "str | os.PathLike[str]"
Given: TypeAlias = "Array | Image.Image | PathLike"


class Upscaler:
    """An engine, opened, that enlarges what it is called with. Use as a context manager, or close it.

    model: an ONNX file or an engine, or "clean", "camera" or "photo"; None for the one of these three that fits each
    image, by what its file's head says, as the command chooses. engine, precision: as of the command: "auto" takes the
    fastest that this machine has, whose results are close to FP32's. tile: "auto", "none" or a side in pixels; the
    result is the same. memory: bytes for images in flight and activations. batch: images per engine call. threads: for
    everything. None leaves each to this machine.

    Calls from several threads wait for each other. Raises ExportError, BackendUnavailableError or EngineBuildError
    where the engine cannot be opened, that of "clean" at once where it chooses, and the others when first needed.
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
        self._models = read_models(None if model is None else model_file(model))
        self._default = next(iter(self._models))
        self._open: dict[int | None, OpenModels] = {}
        self._lock = threading.Lock()
        self._opened(1, self._default)

    def _opened(self, at_once: int | None, first: str) -> OpenModels:
        """For one image on all threads, or (None) for as many at once as there are threads."""
        if at_once not in self._open:
            opened = OpenModels(self._models, self._settings, first=first, at_once=at_once)
            self._open[at_once] = opened.__enter__()
        return self._open[at_once]

    @property
    def scale(self) -> int:
        """How many times larger results are, in each direction."""
        return self._models[self._default].description.scale

    @property
    def engine(self) -> dict[str, Any]:
        """Which engine and precision it runs in, and why; where it chooses among models, of "clean"."""
        return self._opened(1, self._default).get(self._default).report()

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the engines. Twice does no harm."""
        for opened in self._open.values():
            opened.__exit__()
        self._open.clear()

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
        Where models are chosen, a Pillow image's format and tables tell as a file's head does; an array, and an image
        that was made or changed in memory, gets "clean". The Pillow image that results says which was taken, and why,
        in ``info["model"]`` and ``info["model_because"]``.
        Raises InputError for what cannot be read, InferenceError where the engine fails; in a list, the first failure.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return np.stack(self._upscaled(list(images)))
        if isinstance(images, np.ndarray | Image.Image | str | os.PathLike):
            return self._upscaled([images])[0]
        return self._upscaled(list(images))

    def _upscaled(self, images: list[Given]) -> list[Any]:
        if not images:
            return []
        results: dict[int, Array | Image.Image] = {}
        failures: dict[int, BaseException] = {}
        items = [_item(given, f"image {number}", self.scale) for number, given in enumerate(images, 1)]

        def job(number: int, item: _Item) -> Job:
            def taken() -> Taken:
                item.taken = opened.taken(fitting_model(item.origin))
                return item.taken

            def deliver(pixels: Pixels) -> None:
                results[number] = item.result(pixels)

            return Job(number, item, PixelOutput(item.name, deliver), taken if opened.chooses else None)

        def on_end(job: Job, _: FileReport, exc: BaseException | None) -> None:
            if exc is not None:
                failures[job.number] = exc

        with self._lock:
            first = self._first(items[0])
            opened = self._opened(self._at_once(items), first)
            Run(
                map(job, range(len(items)), items),
                lanes=opened.engine.lanes,
                settings=opened.engine.run_settings(),
                on_end=on_end,
            ).execute()
        if failures:
            raise failures[min(failures)]
        return [results[number] for number in range(len(items))]

    def _first(self, item: _Item) -> str:
        """The model that a call which begins with this item needs in any case."""
        return fitting_model(item.origin).model if len(self._models) > 1 else self._default

    def _at_once(self, items: list[_Item]) -> int | None:
        if len(items) != 1:
            return None
        tiles = self._settings.tiles(*items[0].size(), self._models[self._default].description)
        return 1 if tiles == 1 else None


class _Item(ABC):
    """Something that was given: an input of the stages, and what its result is to look like.

    taken: the model that was, where there is a choice.
    """

    def __init__(self, name: str, scale: int) -> None:
        self.name, self.scale = name, scale
        self.taken: Taken | None = None
        self._picture: Picture | None = None

    @abstractmethod
    def made(self) -> Picture:
        """The picture."""

    @abstractmethod
    def kept(self) -> Origin:
        """How its pixels were kept until now; asked before the picture is made, if at all."""

    @abstractmethod
    def result(self, pixels: Pixels) -> Array | Image.Image:
        """The enlarged pixels, as whoever gave the item expects them."""

    def sha256(self) -> str:
        """Of the picture."""
        return PictureInput(self.name, self._at_hand()).sha256()

    @cached_property
    def origin(self) -> Origin:
        """How its pixels were kept until now."""
        with self._named():
            return self.kept()

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
            with self._named():
                self._picture = self.made()
        return self._picture

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What goes wrong inside says where."""
        try:
            yield
        except OSError as exc:
            raise InputError(f"cannot read {self.name}: {exc.strerror or exc}") from exc
        except InputError as exc:
            raise type(exc)(f"{self.name}: {exc.message}", hint=exc.hint) from exc


class _ArrayItem(_Item):
    """An array, whose result is one."""

    def __init__(self, array: Array, name: str, scale: int) -> None:
        super().__init__(name, scale)
        self.array = array

    def kept(self) -> Origin:
        """Nothing says."""
        return Origin(False, "an array")

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


class _PillowItem(_Item):
    """Something whose result is a Pillow image. info: what that will say."""

    def __init__(self, name: str, scale: int) -> None:
        super().__init__(name, scale)
        self.info: dict[str, Any] = {}

    @abstractmethod
    def decoded(self) -> Picture:
        """The picture."""

    def made(self) -> Picture:
        """The picture, what is to be said of it noted."""
        picture, scale = self.decoded(), self.scale
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
        if self.taken is not None:
            image.info.update(model=self.taken.model, model_because=self.taken.because)
        return image


class _ImageItem(_PillowItem):
    """A Pillow image."""

    def __init__(self, image: Image.Image, name: str, scale: int) -> None:
        super().__init__(name, scale)
        self.image = image

    def kept(self) -> Origin:
        """As far as the image still knows."""
        return origin_of(self.image, b"")

    def decoded(self) -> Picture:
        """Its pixels."""
        return picture_from_image(self.image)


class _FileItem(_PillowItem):
    """A file."""

    def __init__(self, path: PathLike, scale: int) -> None:
        super().__init__(display(os.fspath(path)), scale)
        self._file = FileInput(FolderReader(Path()), Entry(os.fspath(path)))

    def kept(self) -> Origin:
        """By its head."""
        return self._file.origin()

    def decoded(self) -> Picture:
        """Its pixels; the file is read once."""
        return self._file.picture()


def _item(given: Given, name: str, scale: int) -> _Item:
    if isinstance(given, np.ndarray):
        return _ArrayItem(given, name, scale)
    if isinstance(given, Image.Image):
        return _ImageItem(given, name, scale)
    if isinstance(given, str | os.PathLike):
        return _FileItem(given, scale)
    raise InputError(f"{name} is a {type(given).__name__}", hint="give an array, a Pillow image or a path")
