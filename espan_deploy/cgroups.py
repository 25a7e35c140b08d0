"""What the control groups of this process allow it: how a container, or a scheduler, limits memory and processors.

Both versions of Linux' control groups, side by side as well, and groups within groups: the tightest limit counts.
Elsewhere there are none. Facts: the kernel's documentation, admin-guide/cgroup-v1 and cgroup-v2, and proc(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNIFIED = ""
"""The controller that stands for version 2, whose groups hold every controller's files."""

NO_LIMIT = 1 << 60
"""In bytes; version 1 says "no limit" with a number beyond it."""


@dataclass(frozen=True)
class Limits:
    """None where nothing limits. cores: processors' worth of time, such as 1.5."""

    memory_bytes: int | None = None
    cores: float | None = None


def limits(root: Path = Path("/")) -> Limits:
    """Those of this process. root: where /proc and /sys are, replaced in tests."""
    memory: list[int] = []
    cores: list[float] = []
    for controller, group in _groups(root):
        if controller in (UNIFIED, "memory"):
            # memory.high does not kill, but slows what exceeds it to a crawl.
            for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
                memory += [limit for limit in _numbers(group / name)[:1] if limit < NO_LIMIT]
        if controller in (UNIFIED, "cpu"):
            quota = _numbers(group / "cpu.max") or (
                _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
            )
            if len(quota) == 2 and min(quota) > 0:
                cores.append(quota[0] / quota[1])
    return Limits(min(memory, default=None), min(cores, default=None))


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """Controller and folder of every group that this process is in, each with those around it."""
    inside = {
        controller: PurePosixPath(path)
        for line in _lines(root / "proc/self/cgroup")
        if line.count(":") >= 2
        for controllers, path in [line.split(":", 2)[1:]]
        for controller in controllers.split(",")
    }
    for controller, mounted, point in _mounts(root):
        if controller not in inside:
            continue
        group = inside[controller]
        # A container sees its own group at the mount point, and maybe a path from outside of which it sees nothing.
        below = group.relative_to(mounted) if group.is_relative_to(mounted) else PurePosixPath()
        folder = point / below if ".." not in below.parts else point
        yield from ((controller, each) for each in (folder, *folder.parents) if each.is_relative_to(point))


def _mounts(root: Path) -> Iterator[tuple[str, PurePosixPath, Path]]:
    """Of every hierarchy that is mounted: controller, which group stands at the mount point, and where that is."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        mounted, point = PurePosixPath(_plain(fields[3])), root / _plain(fields[4]).lstrip("/")
        if kind[0] == "cgroup2":
            yield UNIFIED, mounted, point
        elif kind[0] == "cgroup":
            yield from ((controller, mounted, point) for controller in kind[2].split(","))


def _plain(path: str) -> str:
    """A path without mountinfo's octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _numbers(path: Path) -> list[int]:
    """Those on a file's first line; none where it says "max", -1 or nothing."""
    words = next(iter(_lines(path)), "").split()
    return [int(word) for word in words] if words and all(word.isdecimal() for word in words) else []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
