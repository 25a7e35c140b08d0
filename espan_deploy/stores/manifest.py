"""What was made of what: the record in an output folder that lets a run go on where another ended.

One line of JSON per output, appended before the output gets its name. So a run that was killed leaves either no
output and perhaps a line, or an output and its line; both are told from the contents alone, never from clocks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from espan_deploy.errors import InputError
from espan_deploy.stores import HIDDEN_PREFIX

NAME = f"{HIDDEN_PREFIX}.jsonl"


@dataclass(frozen=True)
class Record:
    """One output: its name, its SHA-256, its input's SHA-256, and the SHA-256 of model and settings."""

    output: str
    output_sha256: str
    input_sha256: str
    settings_sha256: str


class Manifest:
    """The record of one output folder, held by one run at a time. Use as a context manager.

    Raises InputError where the folder cannot be written or another run holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: FileIO | None = None
        self._torn = False
        self._writing, self._syncing = threading.Lock(), threading.Lock()
        self._written = self._synced = self._lost = 0
        self._failure: OSError | None = None
        self._records: dict[tuple[str, str], Record] = {}

    def __enter__(self) -> Manifest:
        path = self.folder / NAME
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as exc:
            raise InputError(
                f"cannot write to {self.folder}: {exc.strerror or exc}", hint="name a folder you may write to"
            ) from exc
        if not _lock(self._file):
            self._file.close()
            raise InputError(
                f"another run is writing to {self.folder}", hint="wait for it, or name another output folder"
            )
        self._file.seek(0)
        data = self._file.readall()
        for record in _parse(data):
            self._remember(record)
        self._torn = bool(data) and not data.endswith(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def find(self, output: str, output_sha256: str) -> Record | None:
        """What is recorded of an output with these contents."""
        return self._records.get((output, output_sha256))

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


def _lock(file: FileIO) -> bool:
    if sys.platform == "win32":
        return True  # the folder is not locked there: two runs at once redo each other's work, and lose nothing
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        return not isinstance(exc, BlockingIOError)  # a file system without locks
    return True
