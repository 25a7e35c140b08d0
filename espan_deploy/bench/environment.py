"""Where a figure was measured: everything that would change it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espan_deploy import __version__
from espan_deploy.machine import memory_bytes, processor_name, usable_cores

GPU_FIELDS = (
    *("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem"),
    *("temperature.gpu", "power.draw", "power.limit", "persistence_mode"),
)

GPU_NAMES = ("name", "driver_version", "persistence_mode")

NVIDIA_SMI_SECONDS = 10

BUSY_CORES = 0.25
"""Other processes' share, in cores, above which it is told."""

Ask = Callable[[list[str]], "str | None"]
"""Runs a command; its output, or None where it is not there or fails."""


def environment(*, threads: int | None, ask: Ask | None = None) -> dict[str, Any]:
    """The machine and its software, as plain data. threads: as asked for, None for all."""
    return {
        "espan_deploy": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "os": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "machine": platform.machine(),
        "cpu": processor_name(),
        "cpu_cores": os.cpu_count(),
        "cpu_usable_cores": usable_cores(),
        "cpu_mhz": _cpu_mhz(),
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_gib": memory_bytes() / 2**30,
        "threads": threads or usable_cores(),
        "load_1min_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpus": gpus(ask or _ask),
    }


def gpus(ask: Ask) -> list[dict[str, Any]]:
    """Every NVIDIA GPU with its clocks, or none."""
    answer = ask(["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"])
    if answer is None:
        return []
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", ask(["nvidia-smi"]) or "")
    found = []
    for line in answer.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(GPU_FIELDS):
            named = {
                f.replace(".", "_"): value if f in GPU_NAMES else _number(value)
                for f, value in zip(GPU_FIELDS, values, strict=True)
            }
            found.append({**named, "cuda": cuda.group(1) if cuda else None})
    return found


def one_line(facts: dict[str, Any]) -> str:
    """The environment as the table's foot."""
    clock = f" at {facts['cpu_mhz'] / 1000:.1f} GHz" if facts["cpu_mhz"] else ""
    parts = [f"{facts['cpu']}{clock}, {facts['threads']} of {facts['cpu_cores']} cores"]
    parts += [f"{g['name']}, driver {g['driver_version']}, CUDA {g['cuda']}" for g in facts["gpus"]]
    parts += [facts["os"], f"Python {facts['python']}", f"espan-deploy {facts['espan_deploy']}"]
    return "; ".join(parts)


@dataclass(frozen=True)
class CpuUse:
    """A moment's CPU time: of all processes (None where the system does not tell), and of this one."""

    wall: float
    all_seconds: float | None
    own_seconds: float

    @classmethod
    def now(cls) -> CpuUse:
        """This moment's."""
        return cls(time.monotonic(), _busy_seconds(), time.process_time())

    def others_since(self, earlier: CpuUse) -> float | None:
        """Cores that other processes kept busy on average since then."""
        if self.all_seconds is None or earlier.all_seconds is None or self.wall <= earlier.wall:
            return None
        others = (self.all_seconds - earlier.all_seconds) - (self.own_seconds - earlier.own_seconds)
        return max(0.0, others / (self.wall - earlier.wall))


def _busy_seconds() -> float | None:
    fields = (_read("/proc/stat") or "").split("\n", 1)[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    user, nice, system, _idle, _wait, interrupt, soft, steal = (int(value) for value in fields[1:9])
    return (user + nice + system + interrupt + soft + steal) / float(os.sysconf("SC_CLK_TCK"))


def _cpu_mhz() -> float | None:
    match = re.search(r"cpu MHz\s*:\s*([\d.]+)", _read("/proc/cpuinfo") or "")
    return float(match.group(1)) if match else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _ask(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
