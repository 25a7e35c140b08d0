"""What was found out about models on this machine, kept in the user's cache: a file for each finding.

Each is written whole, so that processes that find out the same at once leave one of their findings, never a mixture.
What is damaged, of another key or of a time to come is as good as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from espan_deploy.errors import InputError
from espan_deploy.files import cache_folder, write_atomically
from espan_deploy.machine import processor_name

T = TypeVar("T")

FOLDER = "measured"

WallClock = Callable[[], float]
"""Seconds since 1970, as the user set it: may jump."""

CLOCK_TOLERANCE_S = 24 * 3600.0
"""A finding may be of a moment so much later than now: clocks of machines that share a home differ."""


@dataclass(frozen=True)
class Finding:
    """value: anything that JSON holds. at: when it was found out, in seconds since 1970."""

    value: Any
    at: float


@dataclass(frozen=True)
class Recalled:
    """finding: None where nothing usable is kept. problem: why what is there cannot be used, or ""."""

    finding: Finding | None
    problem: str = ""


def recall(what: Sequence[str], *, max_age_s: float | None = None, clock: WallClock = time.time) -> Recalled:
    """What was kept about something. what: everything it depends on, the machine's processor apart."""
    path, key = _place(what)
    try:
        document = json.loads(path.read_bytes())
        if document["key"] != key:
            raise ValueError("it is of another key")
        finding = Finding(document["finding"], float(document["at"]))
    except FileNotFoundError:
        return Recalled(None)
    except OSError as exc:
        return Recalled(None, f"cannot read {path}: {exc.strerror or exc}")
    except (ValueError, KeyError, TypeError) as exc:
        return Recalled(None, f"{path} is damaged: {exc}")
    age = clock() - finding.at
    if not age >= -CLOCK_TOLERANCE_S or (max_age_s is not None and age > max_age_s):
        return Recalled(None)
    return Recalled(finding)


def keep(what: Sequence[str], value: Any, *, clock: WallClock = time.time) -> str:
    """Keep a finding in place of an earlier one. Returns why that was not possible, or ""."""
    path, key = _place(what)
    document = {"key": key, "at": clock(), "finding": value}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(document, indent=1).encode())
    except InputError as exc:
        return exc.message
    except OSError as exc:
        return f"cannot make {path.parent}: {exc.strerror or exc}"
    return ""


def remembered(what: Sequence[str], read: Callable[[Any], T], measure: Callable[[], Any]) -> T:
    """A finding that never ages: as kept, or measured now and kept where that is possible.

    measure: gives what JSON holds. read: makes of it what is wanted; raises ValueError, KeyError or TypeError where
    something else stands there, which is then not used.
    """
    finding = recall(what).finding
    if finding is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return read(finding.value)
    value = measure()
    keep(what, value)
    return read(value)


def _place(what: Sequence[str]) -> tuple[Path, list[str]]:
    key = [*what, processor_name()]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:40]
    return cache_folder() / FOLDER / f"{name}.json", key
