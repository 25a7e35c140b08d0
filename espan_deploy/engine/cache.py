"""The engines kept in the user's cache folder: found by content, written whole, built once at a time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from espan_deploy.backends.manifest import ENGINE_SUFFIX, Manifest, manifest_path, read_engine, read_manifest
from espan_deploy.errors import EngineBuildError, EngineMismatchError, InputError
from espan_deploy.files import cache_folder, write_atomically

POLL_SECONDS = 0.1


def engines_folder() -> Path:
    """Where the engines lie."""
    return cache_folder() / "engines"


def engine_path(key: str, suffix: str = ENGINE_SUFFIX) -> Path:
    """Where the engine of a key lies, or is to lie."""
    return engines_folder() / f"{key[:40]}{suffix}"


@dataclass(frozen=True)
class CacheEntry:
    """One engine in the cache. manifest: None where it cannot be read; problem: why it would be refused, or ""."""

    path: Path
    bytes: int
    modified: float
    manifest: Manifest | None
    problem: str = ""


def list_cache(*, verify: bool = False) -> list[CacheEntry]:
    """What the cache holds, newest first. verify: hold every engine's bytes against its manifest, too."""
    entries = []
    for path in _engines():
        manifest, problem = None, ""
        try:
            manifest = read_manifest(path)
            if verify:
                read_engine(path)
        except (EngineMismatchError, InputError) as exc:
            problem = exc.message
        stat = path.stat()
        entries.append(CacheEntry(path, stat.st_size, stat.st_mtime, manifest, problem))
    return sorted(entries, key=lambda entry: -entry.modified)


def clear_cache() -> tuple[int, int]:
    """Remove every engine that is not being built, with what belongs to it, and what was measured.

    Returns how many engines, and the bytes of all.
    """
    count = freed = 0
    for path in _engines():
        with lock(path, wait=False) as held:
            if not held:
                continue
            freed += path.stat().st_size
            count += 1
            manifest_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    for extra in ("runtime", "timing", "measured"):
        for path in _files(cache_folder() / extra):
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
    return count, freed


def _engines() -> list[Path]:
    return [path for path in _files(engines_folder()) if path.suffix in (ENGINE_SUFFIX, ".onnx")]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def lookup(path: Path, key: str) -> tuple[Manifest | None, str]:
    """The sound engine of a key at a path, or None and why there is none: "" where nothing was there at all."""
    if not path.exists():
        return None, ""
    try:
        _, manifest = read_engine(path)
    except (EngineMismatchError, InputError) as exc:
        return None, exc.message
    return (manifest, "") if manifest.key == key else (None, f"{path} is of another key")


def closest(recipe: str, name: str) -> Manifest | None:
    """The newest engine of the same recipe and model name: what a rebuild is compared with."""
    for entry in list_cache():
        manifest = entry.manifest
        if manifest is not None and (manifest.recipe, manifest.name) == (recipe, name):
            return manifest
    return None


def store(path: Path, data: bytes, manifest: Manifest) -> None:
    """Write an engine and its manifest, each whole or not at all; the manifest last, since it vouches for it."""
    manifest_path(path).unlink(missing_ok=True)
    for file, content in ((path, data), (manifest_path(path), manifest.to_json().encode())):
        write_file(file, content)


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole, making its folder. Raises InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"cannot make the folder {path.parent}: {exc.strerror or exc}") from exc
    write_atomically(path, data)


@contextmanager
def lock(
    path: Path, *, wait: bool = True, waiting: Callable[[], None] | None = None, timeout: float = 3600.0
) -> Iterator[bool]:
    """Hold the right to build what is to lie at ``path``, against all other processes; yields whether it is held.

    It ends with the process that holds it, however that ends. waiting: called once when another holds it.
    Raises EngineBuildError after ``timeout`` seconds.
    """
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as exc:
        raise InputError(f"cannot write {lock_path}: {exc.strerror or exc}") from exc
    try:
        held = _try_lock(handle)
        if not held and wait:
            if waiting is not None:
                waiting()
            deadline = time.monotonic() + timeout
            while not (held := _try_lock(handle)):
                if time.monotonic() > deadline:
                    raise EngineBuildError(f"another process has been building {path} for {timeout:.0f} s")
                time.sleep(POLL_SECONDS)
        yield held
    finally:
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
