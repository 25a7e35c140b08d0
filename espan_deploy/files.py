"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from espan_deploy.errors import InputError


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
