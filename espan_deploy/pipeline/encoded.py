"""Jobs between stores: image files in, image files out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from espan_deploy.errors import InputError
from espan_deploy.files import display
from espan_deploy.pipeline.decode import decode, read_origin, read_size
from espan_deploy.pipeline.encode import EncodeSettings, FileSink, Format, check_holds, is_streamed, open_sink
from espan_deploy.pipeline.jobs import Input, Job, Taken
from espan_deploy.pipeline.names import NamedFile
from espan_deploy.pipeline.origin import Origin
from espan_deploy.pipeline.picture import Picture
from espan_deploy.stores import Destination, Entry, MadeFrom, Part, Reader, State, check_size

CANVAS_BYTES = 4
"""Of a pixel of an image that Pillow holds whole, whether it has three channels or four."""


@dataclass(frozen=True)
class FileSettings:
    """How results are written. settings_sha256: of all that they depend on besides their input."""

    settings_sha256: str
    encode: EncodeSettings
    overwrite: bool = False


def digest(**settings: object) -> str:
    """SHA-256 of everything besides the input that a result depends on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


Choose = Callable[[Origin], tuple[Taken, str]]
"""The model for a file of this origin, and the SHA-256 of what its result then depends on besides its input."""


def file_jobs(
    reader: Reader,
    files: Iterable[NamedFile],
    destination: Destination,
    settings: FileSettings,
    choose: Choose | None = None,
) -> Iterator[Job]:
    """A job for every file, as they come.

    choose: where each file has its own model; the SHA-256 in the settings then does not count.
    """
    for named in files:
        file, output = FileInput(reader, named.entry), FileOutput(destination, named.output, named.format, settings)
        yield Job(named.number, file, output, None if choose is None else partial(_taken, file, output, choose))


def _taken(file: FileInput, output: FileOutput, choose: Choose) -> Taken:
    taken, settings_sha256 = choose(file.origin())
    output.settings = replace(output.settings, settings_sha256=settings_sha256)
    return taken


class FileInput:
    """An encoded image in a source; read when first needed, forgotten once decoded."""

    def __init__(self, reader: Reader, entry: Entry) -> None:
        self.name = entry.name
        self._reader, self._entry = reader, entry
        self._data: bytes | None = None

    def _read(self) -> bytes:
        if self._data is None:
            if self._entry.size is not None:
                check_size(self._entry.size)
            self._data = self._reader.read(self._entry)
        return self._data

    def origin(self) -> Origin:
        """How the file kept its pixels, from its header."""
        return read_origin(self._read())

    def sha256(self) -> str:
        """Of the file, or its version where the store knows it: then nothing is read for what is done already."""
        if self._entry.version:
            return self._entry.version
        return hashlib.sha256(self._read()).hexdigest()

    def size(self) -> tuple[int, int]:
        """From the file's header."""
        height, width, _ = read_size(self._read())
        return height, width

    def picture(self) -> Picture:
        """Decoded."""
        data, self._data = self._read(), None
        return decode(data)


class FileOutput:
    """An image file to be at a destination."""

    def __init__(self, destination: Destination, name: str, file_format: Format, settings: FileSettings) -> None:
        self.name, self.format, self.settings = name, file_format, settings
        self._destination = destination
        self._made_from: MadeFrom | None = None
        self._replaces = True
        self._part: Part | None = None
        self._sink: FileSink | None = None

    def is_done(self, source: Input) -> bool:
        """As the destination says, unless everything is to be done again."""
        self._made_from = MadeFrom(source.sha256(), self.settings.settings_sha256)
        if self.settings.overwrite:
            return False
        state = self._destination.state(self.name, self._made_from)
        if state is State.FOREIGN:
            raise InputError(
                f"{display(self.name)} is there already and was not made by this tool, or was edited since",
                hint="--overwrite replaces it",
            )
        self._replaces = state is not State.MISSING
        return state is State.CURRENT

    def held_bytes(self, height: int, width: int) -> int:
        """The whole image, where the format is not written strip by strip."""
        check_holds(self.format, height, width, 4, deep=False)
        return 0 if is_streamed(self.format, self.settings.encode) else height * width * CANVAS_BYTES

    def open(self, picture: Picture, scale: int) -> FileSink:
        """A part of the destination, and the format's sink into it."""
        self._part = self._destination.create(self.name)
        deep = picture.depth == 16 and self.format.deep
        self._sink = open_sink(self._part.file, self.format, self.settings.encode, picture, scale, deep=deep)
        return self._sink

    def settle(self) -> None:
        """Pass it on to the destination."""
        assert self._part is not None
        self._part.settle()

    def publish(self) -> int:
        """Whole, or not at all."""
        assert self._part is not None
        assert self._sink is not None
        assert self._made_from is not None
        return self._part.publish(self._made_from, self._sink.sha256(), replace=self._replaces)

    def discard(self) -> None:
        """Nothing stays at the destination."""
        if self._part is not None:
            self._part.discard()
