"""The record of an output folder, written by many threads at once."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from espan_deploy.stores.manifest import Manifest, Record


def record(index: int) -> Record:
    return Record(f"{index}.png", f"{index:064}", "a" * 64, "b" * 64)


def at_once(manifest: Manifest, count: int) -> list[OSError]:
    """Add records from so many threads that begin together."""
    begin, failures = threading.Barrier(count), []

    def add(index: int) -> None:
        begin.wait()
        try:
            manifest.add(record(index))
        except OSError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=add, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def test_lines_that_wait_together_are_synced_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sync is held until all lines are written: one more must do for all the others."""
    synced: list[int] = []
    real, all_written = os.fsync, threading.Event()
    count = 12
    with Manifest(tmp_path) as manifest:
        file = tmp_path / ".espan-deploy.jsonl"

        def slow(descriptor: int) -> None:
            while file.read_bytes().count(b"\n") < count and not all_written.is_set():
                all_written.wait(0.01)
            all_written.set()
            synced.append(descriptor)
            real(descriptor)

        monkeypatch.setattr(os, "fsync", slow)
        assert at_once(manifest, count) == []
        assert 1 <= len(synced) <= 2
    with Manifest(tmp_path) as again:
        assert all(again.find(record(index).output, record(index).output_sha256) for index in range(count))


def test_whose_line_was_lost_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of it once: here to the first who asks, and not to those whose lines it took along."""
    count, told = 6, threading.Event()

    with Manifest(tmp_path) as manifest:
        file = tmp_path / ".espan-deploy.jsonl"

        def fails_once(_descriptor: int) -> None:
            while file.read_bytes().count(b"\n") < count and not told.is_set():
                told.wait(0.01)
            if not told.is_set():
                told.set()
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fsync", fails_once)
        failures = at_once(manifest, count)
        assert len(failures) == count
        assert {failure.errno for failure in failures} == {errno.EIO}
        manifest.add(record(count))  # a later line is on disk
        assert manifest.find(record(count).output, record(count).output_sha256)
        assert manifest.find(record(0).output, record(0).output_sha256) is None
