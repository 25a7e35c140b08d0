"""The service as people start it: a process of its own, listening on a port of 127.0.0.1."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Serve = Callable[..., Any]
"""A context manager that gives a client; keywords are those of Limits, of ServiceSettings, token and chooses."""

ROOT = Path(__file__).resolve().parents[2]


class Served:
    """A running service. address: where it listens, like http://127.0.0.1:40123."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def served(model: Path | None, *options: str) -> Iterator[Served]:
    """Start it, and see to it that it ends. model: None for that which fits each picture."""
    command = [sys.executable, str(ROOT / "cli.py"), "serve", "--port", "0", "--threads", "2"]
    command += [] if model is None else ["--model", str(model)]
    command += ["--engine", "onnxruntime", "--precision", "fp32", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)
            assert found, line
            yield Served(process, found[1])
        finally:
            process.kill()
