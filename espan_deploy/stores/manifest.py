"""What was made of what: the record in an output folder that lets a run go on where another ended.

One line of JSON per output, appended before the output gets its name. So a run that was killed leaves either no
output and perhaps a line, or an output and its line; both are told from the contents alone, never from clocks.

Where several processes write to a folder, each appends to a file of its own and reads those of the others. The
last of them puts them together; or, where all were killed, whoever comes next.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from espan_deploy.errors import InputError
from espan_deploy.stores import HIDDEN_PREFIX, Writer

NAME = f"{HIDDEN_PREFIX}.jsonl"
"""The record of all earlier runs, and the lock: exclusive for a run alone, shared among several writers."""

WRITERS = f"{HIDDEN_PREFIX}-*.jsonl"
"""The records of several writers."""

PATIENCE_SECONDS = 30.0
"""For another writer that holds the folder alone while it starts, and looks for what killed runs left."""

PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Record:
    """One output: its name, its SHA-256, its input's SHA-256, and the SHA-256 of model and settings."""

    output: str
    output_sha256: str
    input_sha256: str
    settings_sha256: str


class Manifest:
    """The record of one output folder. Use as a context manager.

    writer: which of several that hold it together; None for a run that holds it alone.
    while_alone: called on entering, where and while no other process holds the folder.
    Raises InputError where the folder cannot be written, or others hold it.
    """

    def __init__(
        self, folder: Path, writer: Writer | None = None, *, while_alone: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self.writer = folder, writer
        self._while_alone = while_alone
        self._file: FileIO | None = None
        self._lock_file: FileIO | None = None
        self._torn = False
        self._writing, self._syncing = threading.Lock(), threading.Lock()
        self._written = self._synced = self._lost = 0
        self._failure: OSError | None = None
        self._records: dict[tuple[str, str], Record] = {}
        self._read: dict[Path, int] = {}

    def __enter__(self) -> Manifest:
        host = self.writer.host if self.writer is not None else ""
        if host and not self._path(host).exists():
            raise InputError(
                f"{self.folder} is not the folder that the run writes to: its other writers are not seen here",
                hint="name a folder that all machines share, or a bucket",
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = self._file = (self.folder / NAME).open("a+b", buffering=0)
            self._take_lock(self._lock_file)
            if self.writer is not None:
                self._file = self._path(self.writer.name).open("a+b", buffering=0)
                if _locked(self._file) is False:
                    raise self._held()
        except OSError as exc:
            self._close()
            raise InputError(
                f"cannot write to {self.folder}: {exc.strerror or exc}", hint="name a folder you may write to"
            ) from exc
        except InputError:
            self._close()
            raise
        self._read_all()
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            self._torn = self._file.read(1) != b"\n"
        return self

    def _path(self, writer: str) -> Path:
        return self.folder / f"{HIDDEN_PREFIX}-{writer}.jsonl"

    def _held(self) -> InputError:
        return InputError(f"another run is writing to {self.folder}", hint="wait for it, or name another output folder")

    def _take_lock(self, file: FileIO) -> None:
        """Alone, if only for a moment; several writers then share it. Raises InputError where others hold it."""
        alone = _locked(file)
        if alone:
            self._put_together(file)
        if alone or (alone is None and self.writer is None):
            self._while_alone()
        if self.writer is None:
            if alone is False:
                raise self._held()
            return
        end = time.monotonic() + PATIENCE_SECONDS
        while _locked(file, shared=True) is False:
            if time.monotonic() > end:
                raise self._held()
            time.sleep(PAUSE_SECONDS)

    def _put_together(self, file: FileIO) -> None:
        """Take over what several writers recorded earlier."""
        for path in sorted(self.folder.glob(WRITERS)):
            data = b"\n" + path.read_bytes()
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
            path.unlink()

    def _read_all(self) -> None:
        """What was recorded since the last time, by anyone; lines that are being written wait."""
        for path in (self.folder / NAME, *self.folder.glob(WRITERS)):
            start = self._read.get(path, 0)
            with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                file.seek(start)
                whole, newline, _ = file.readall().rpartition(b"\n")
                self._read[path] = start + len(whole) + len(newline)
                for record in _parse(whole):
                    self._remember(record)

    def __exit__(self, *_: object) -> None:
        """The last of several writers leaves the folder as one would that was alone."""
        if self.writer is not None and self._lock_file is not None and _locked(self._lock_file):
            with contextlib.suppress(OSError):
                self._put_together(self._lock_file)
            self._while_alone()
        self._close()

    def _close(self) -> None:
        for file in (self._file, self._lock_file):
            if file is not None:
                file.close()

    def find(self, output: str, output_sha256: str) -> Record | None:
        """What is recorded of an output with these contents, by whichever writer. From any thread."""
        found = self._records.get((output, output_sha256))
        if found is None and self.writer is not None:
            with self._writing:
                self._read_all()
                found = self._records.get((output, output_sha256))
        return found

    def add(self, record: Record) -> None:
        """Record an output that is about to get its name; on disk when this returns. From any thread.

        Lines of threads that wait at the same time get to the disk together: it takes as long for many as for one.
        """
        with self._writing:
            assert self._file is not None
            # A line that a kill or a full disk cut off stays alone: the next one starts afresh.
            line = (b"\n" if self._torn else b"") + json.dumps(asdict(record)).encode() + b"\n"
            self._torn = True
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._torn = False
            self._written += 1
            number = self._written
        self._sync(number)
        with self._writing:
            self._remember(record)

    def _sync(self, number: int) -> None:
        """Wait until the line of this number is on disk; whoever comes first syncs for all that were written."""
        with self._syncing:
            if number <= self._lost and self._failure is not None:
                # The system tells of lost writes once; whoever else they belonged to must hear of it all the same.
                raise OSError(self._failure.errno, self._failure.strerror)
            if number <= self._synced:
                return
            with self._writing:
                assert self._file is not None
                written, file = self._written, self._file.fileno()
            try:
                os.fsync(file)
            except OSError as exc:
                with self._writing:  # what was written meanwhile shares its blocks
                    self._lost, self._failure = self._written, exc
                raise
            self._synced = written

    def _remember(self, record: Record) -> None:
        # By contents too: a run killed just before renaming leaves the line of the new and the file of the old.
        self._records[record.output, record.output_sha256] = record


def _parse(data: bytes) -> Iterator[Record]:
    for line in data.splitlines():
        # A line cut off by a kill, or edited by hand, says nothing.
        with contextlib.suppress(ValueError, TypeError):
            yield Record(**json.loads(line))


def _locked(file: FileIO, *, shared: bool = False) -> bool | None:
    """Whether the lock was free and is now this process's; None where there are no locks.

    Without them, runs at once redo each other's work, and lose nothing.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as exc:
        return False if isinstance(exc, BlockingIOError) else None
    return True
