"""Where files come from and where results go: two small protocols, and a module for each kind of place.

A **source** lists names and reads bytes. A **destination** knows what is done, and takes results so that nobody ever
sees half of one; what was made of what (its :class:`MadeFrom`) is its promise to keep, in whatever way suits it.
Stores know nothing of pictures. ``tests/stores/`` holds every one of them to the same contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import BinaryIO, Protocol

from espan_deploy.errors import InputError

HIDDEN_PREFIX = ".espan-deploy"
"""Of our own files at a destination; no source lists them."""

URL_SCHEMES = ("s3", "gs", "az")
"""Of locations that are no folders."""

MAX_FILE_BYTES = 1 << 31
"""A larger image file is no image that this machine could hold."""

APPEARED = "something else appeared in its place meanwhile, and was kept"
"""Why a result was not published that was to replace nothing."""

Endings = frozenset[str]
"""Of the files to be listed: lower case, with their dot."""


@dataclass(frozen=True)
class Entry:
    """A file of a source.

    name: relative to the source. size: in bytes, None where listing does not tell it. version: SHA-256 of what the
    store tells versions of its contents apart by; "" where only reading them does.
    """

    name: str
    size: int | None = None
    version: str = ""


@dataclass
class LeftOut:
    """What a source did not list so far.

    ignored: files with other endings, by ending. skipped_folders: links back to a folder already seen.
    broken: what cannot even be looked at, with the reason.
    """

    ignored: Counter[str] = field(default_factory=Counter)
    skipped_folders: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)


class Reader(Protocol):
    """Files to read, of which somebody else has the list. transfers: how many it pays to read at once."""

    @property
    def transfers(self) -> int: ...  # noqa: D102

    def read(self, entry: Entry) -> bytes:
        """All bytes of a file, of the version listed. From any thread. Raises InputError or OSError."""
        ...


class Source(Reader, Protocol):
    """Files to list and to read.

    location: as printed. base: where another process opens a :class:`Reader` of the files listed.
    total: how many there are, None where only listing them all would tell. left_out: as of the last listing.
    """

    @property
    def location(self) -> str: ...  # noqa: D102

    @property
    def base(self) -> str: ...  # noqa: D102

    @property
    def total(self) -> int | None: ...  # noqa: D102

    @property
    def left_out(self) -> LeftOut: ...  # noqa: D102

    def size(self, entry: Entry) -> int:
        """A file's bytes, as listed or as the file system says, 0 where it does not: nothing is read for it."""
        ...

    def entries(self) -> Iterator[Entry]:
        """The files, in the order of their names' code points, one after another: they may be millions.

        Raises InputError where listing fails.
        """
        ...


@dataclass(frozen=True)
class MadeFrom:
    """What a result depends on: SHA-256 of the input's contents or version, and of the model and all settings."""

    input_sha256: str
    settings_sha256: str


class State(Enum):
    """What stands where a result is to go: nothing; that very result; an older one of ours; something not ours."""

    MISSING = "missing"
    CURRENT = "current"
    OUTDATED = "outdated"
    FOREIGN = "foreign"


class Part(Protocol):
    """A result on its way, invisible until published. For one thread at a time."""

    @property
    def file(self) -> BinaryIO:
        """To write to and seek in."""
        ...

    def settle(self) -> None:
        """A moment between writes, to move on what is written so far rather than all of it at the end."""
        ...

    def publish(self, made_from: MadeFrom, sha256: str | None, *, replace: bool = True) -> int:
        """Give the result its name, whole and lasting, in the place of what stood there; its size in bytes.

        sha256: of the contents, where the caller knows it. replace: False where nothing stood there before: a store
        that others may write to meanwhile then keeps what it finds, as far as it can.
        Raises OSError or InputError; then discard it.
        """
        ...

    def discard(self) -> None:
        """Remove what was written. Does no harm twice, or after publication."""
        ...


class Destination(Protocol):
    """Where results go. Use as a context manager; its methods may then be called from any thread.

    location: as printed. base: where another process opens it.
    transfers: how many results it pays to look up or publish at once.
    Entering raises InputError where it cannot be written to.
    """

    @property
    def location(self) -> str: ...  # noqa: D102

    @property
    def base(self) -> str: ...  # noqa: D102

    @property
    def transfers(self) -> int: ...  # noqa: D102

    def __enter__(self) -> Destination: ...

    def __exit__(self, *_: object) -> None: ...

    def state(self, name: str, made_from: MadeFrom) -> State:
        """What stands under a name, judged by contents alone, never by clocks."""
        ...

    def create(self, name: str) -> Part:
        """Begin a result. Raises OSError or InputError."""
        ...


@dataclass(frozen=True)
class Writer:
    """One of several processes that write to a destination at once, each to results of its own.

    name: letters, digits and hyphens, of no other of them. host: the name of one that is writing already, which must
    be seen from here; "" for none.
    """

    name: str
    host: str = ""


def open_stores(
    source: str | Path, destination: str | Path, endings: Endings, writer: Writer | None = None
) -> tuple[Source, Destination]:
    """Both ends of a run: folders, or buckets as URLs (s3://, gs://, az://).

    writer: None where this run is the only one. Raises InputError where there is no such source, or results would
    become inputs; BackendUnavailableError for a bucket without what reaches it.
    """
    from espan_deploy.stores import bucket, folder

    found: bucket.BucketSource | folder.FolderSource
    if is_url(source):
        found = bucket.BucketSource(str(source), endings)
    else:
        found = folder.FolderSource(Path(source), endings)
    output = open_destination(destination, writer)
    if isinstance(found, folder.FolderSource) and isinstance(output, folder.FolderDestination):
        folder.check_apart(found, output)
    if isinstance(found, bucket.BucketSource) and isinstance(output, bucket.BucketDestination):
        bucket.check_apart(found, output)
    return found, output


def open_reader(base: str) -> Reader:
    """The files of a source that was opened elsewhere. Raises as :func:`open_stores`."""
    from espan_deploy.stores import bucket, folder

    return bucket.BucketReader(base) if is_url(base) else folder.FolderReader(Path(base))


def open_destination(location: str | Path, writer: Writer | None = None) -> Destination:
    """Where results go. Raises as :func:`open_stores`."""
    from espan_deploy.stores import bucket, folder

    if is_url(location):
        return bucket.BucketDestination(str(location))
    return folder.FolderDestination(Path(location), writer)


def is_url(location: str | Path) -> bool:
    """Whether a location is a bucket's. Raises InputError for URLs of any other kind."""
    scheme, separator, _ = str(location).partition("://")
    if not separator or not scheme.isalnum():
        return False
    if scheme not in URL_SCHEMES:
        raise InputError(
            f"{location}: nothing is known of {scheme}://",
            hint=f"name a folder, or a bucket as {', '.join(f'{name}://' for name in URL_SCHEMES)}",
        )
    return True


def check_size(size: int) -> None:
    """Raise InputError for a file larger than any that is read."""
    if size > MAX_FILE_BYTES:
        raise InputError(f"the file has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
