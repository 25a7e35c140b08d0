"""A folder of this machine, or one file of it, as a source; a folder as a destination."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

from espan_deploy.errors import InputError
from espan_deploy.files import display
from espan_deploy.stores import HIDDEN_PREFIX, Endings, Entry, LeftOut, MadeFrom, State, Writer, check_size
from espan_deploy.stores.manifest import Manifest, Record

PART_SUFFIX = ".part"
BLOCK = 1 << 20

SYNC_BYTES = 32 << 20
"""Of a file that is written bit by bit, after which they are put on disk."""


class FolderReader:
    """The files under a folder."""

    transfers = 1

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, entry: Entry) -> bytes:
        """As :func:`read_file`."""
        return read_file(self.root / entry.name)


class FolderSource(FolderReader):
    """The files under a folder, recursively, or the one file named. Listed when made, so that ``total`` is known.

    Linked folders are followed once. Raises InputError where there is no such path, or the one file ends otherwise.
    """

    def __init__(self, path: Path, endings: Endings) -> None:
        self.path, self.location, self.left_out = path, display(path), LeftOut()
        super().__init__(path if path.is_dir() else path.parent)
        if path.is_dir():
            self._names = sorted(self._walk(endings))
        elif path.exists():
            if path.suffix.lower() not in endings:
                raise InputError(
                    f"{self.location} has none of the endings {', '.join(sorted(endings))}",
                    hint="name a folder of images, or one image",
                )
            self._names = [path.name]
        else:
            raise InputError(f"there is no {self.location}", hint="name a folder of images, or one image")

    @property
    def base(self) -> str:
        """The folder's whole path."""
        return str(self.root.absolute())

    @property
    def total(self) -> int:
        """How many files there are."""
        return len(self._names)

    def size(self, entry: Entry) -> int:
        """As the file system says."""
        try:
            return (self.root / entry.name).stat().st_size
        except OSError:
            return 0

    def entries(self) -> Iterator[Entry]:
        """The files, sorted by name."""
        return map(Entry, self._names)

    def _walk(self, endings: Endings) -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                status = os.stat(self.root / folder)
                if (status.st_dev, status.st_ino) in seen:
                    self.left_out.skipped_folders.append(folder)
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(self.root / folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as exc:
                self.left_out.broken.append((folder or ".", f"cannot be listed: {exc.strerror or exc}"))
                continue
            for entry in entries:
                name = os.path.join(folder, entry.name)  # surrogates survive, nothing is normalised
                if entry.name.startswith(HIDDEN_PREFIX):
                    continue
                if _is_folder(entry):
                    pending.append(name)
                elif (ending := Path(entry.name).suffix.lower()) in endings:
                    yield name
                else:
                    self.left_out.ignored[ending] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: reading it will say so


def read_file(path: Path) -> bytes:
    """A regular file's bytes. Raises InputError for anything else, OSError where it cannot be read."""
    # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("not a regular file")
        check_size(status.st_size)
        return file.readall()


class FolderDestination:
    """A folder that results are renamed into, once they are on disk; its manifest holds the promise.

    writer: which of several that write to it at once, None where no other does. Entering makes the folder, and raises
    InputError where that fails, or another run is writing to it that does not know of several.
    """

    transfers = 1

    def __init__(self, folder: Path, writer: Writer | None = None) -> None:
        self.folder, self.location, self.base = folder, display(folder), str(folder.absolute())
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{self.location} is not a folder", hint="name an output folder")
        self._manifest = Manifest(folder, writer, while_alone=self._remove_parts)

    def __enter__(self) -> FolderDestination:
        self._manifest.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._manifest.__exit__()

    def state(self, name: str, made_from: MadeFrom) -> State:
        """Whether a file is there, made of this, by us at all, and unedited."""
        path = self.target(name)
        if not os.path.lexists(path):
            return State.MISSING
        try:
            record = self._manifest.find(name, sha256_of(path))
        except OSError:
            record = None
        if record is None:
            return State.FOREIGN
        same = MadeFrom(record.input_sha256, record.settings_sha256) == made_from
        return State.CURRENT if same else State.OUTDATED

    def target(self, name: str) -> Path:
        """Where a result goes. Raises InputError for a name that leads out of the folder, as keys of a bucket may."""
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise InputError("its name leads out of the output folder")
        return self.folder / path

    def create(self, name: str) -> FolderPart:
        """A hidden file beside its place."""
        return FolderPart(self, name)

    def record(self, record: Record) -> None:
        """Put a record on disk. From any thread."""
        self._manifest.add(record)

    def _remove_parts(self) -> None:
        """Remove what killed runs left half-written; while nobody is writing any."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.startswith(HIDDEN_PREFIX) and name.endswith(PART_SUFFIX):
                    with contextlib.suppress(OSError):
                        Path(folder, name).unlink()


class FolderPart:
    """A file under a temporary name in the folder that it will stand in."""

    def __init__(self, destination: FolderDestination, name: str) -> None:
        self._destination, self._name = destination, name
        self._target = destination.target(name)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(PART_SUFFIX, f"{HIDDEN_PREFIX}-", self._target.parent)
        self._part: Path | None = Path(part)
        self.file = cast(BinaryIO, os.fdopen(descriptor, "w+b"))
        self._synced = 0

    def settle(self) -> None:
        """Let the disk write while the rest is computed, rather than at the end."""
        if self.file.tell() - self._synced >= SYNC_BYTES:
            self.file.flush()
            os.fsync(self.file.fileno())
            self._synced = self.file.tell()

    def publish(self, made_from: MadeFrom, sha256: str | None, *, replace: bool = True) -> int:
        """Sync, record, rename. Nobody else has results of this name."""
        del replace
        assert self._part is not None
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        digest, size = sha256 or sha256_of(self._part), self._part.stat().st_size
        # mkstemp makes files for their owner only; a result is as readable as any other new file.
        self._part.chmod(0o666 & ~_umask())
        self._destination.record(Record(self._name, digest, made_from.input_sha256, made_from.settings_sha256))
        self._part.replace(self._target)
        self._part = None
        return size

    def discard(self) -> None:
        """Close and remove the file."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self._part is not None:
            with contextlib.suppress(OSError):
                self._part.unlink()
            self._part = None


def check_apart(source: FolderSource, destination: FolderDestination) -> None:
    """Raise InputError where results would stand among the inputs."""
    inner, outer = destination.folder.resolve(), source.root.resolve()
    if source.root != source.path:
        if inner == outer:
            raise InputError(
                f"the output folder {destination.location} is the image's own", hint="name another output folder"
            )
    elif inner == outer or outer in inner.parents:
        raise InputError(
            f"the output folder {destination.location} lies in the input folder: the next run would upscale its "
            "results",
            hint="name an output folder beside it",
        )


def sha256_of(path: Path) -> str:
    """Of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@cache
def _umask() -> int:
    """The process's umask; it can only be read by setting it, so once."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
