"""What this machine has, and how much of it this process may use: processors, memory."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from espan_deploy import cgroups

UNKNOWN_MEMORY = 8 << 30
"""In bytes, assumed where the system does not tell."""


def usable_cores() -> int:
    """Those this process may keep busy: what a scheduler allows it to run on, and what a container has time for.

    A part of a core counts as one: a thread less would leave it idle.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.limits().cores
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def memory_bytes() -> int:
    """The machine's, or the container's where that is less."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        installed = UNKNOWN_MEMORY
    limit = cgroups.limits().memory_bytes
    return installed if limit is None else min(installed, limit)


def processor_name() -> str:
    """As its maker calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    import platform

    return platform.processor() or platform.machine()
