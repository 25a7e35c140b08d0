"""Writing files so that nobody ever sees half of one, paths as printed, and where what can be made again is kept."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from espan_deploy.errors import InputError

CACHE_VARIABLE = "ESPAN_DEPLOY_CACHE"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place, sync it, and rename it there: what stood there before stays until then.

    Raises InputError where the folder is missing or not writable, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {exc.strerror or exc}", hint="check that its folder exists and is writable"
        ) from exc
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def display(path: str | Path) -> str:
    """A path that can be printed: bytes that are no UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def cache_folder() -> Path:
    """$ESPAN_DEPLOY_CACHE, or espan-deploy in the user's cache folder as the system has it."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        configured = os.environ.get("XDG_CACHE_HOME", "")
        # The standard says that a relative path is to be ignored.
        base = Path(configured) if configured.startswith("/") else Path.home() / ".cache"
    return base / "espan-deploy"
