"""Other people's code, run where it may warn, print or crash without anyone noticing but its caller."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

TAIL_LINES = 3
"""Of what a crashed child said, kept for the message."""


class CrashedError(Exception):
    """The child ended without a result. The message says how, and the last it said."""


class OutOfTimeError(Exception):
    """The child was still computing. stack: where it was, the outermost call first."""

    def __init__(self, stack: list[traceback.FrameSummary]) -> None:
        super().__init__(stack)
        self.stack = stack


@contextmanager
def without_warnings() -> Iterator[None]:
    """What a network's author might care about, and who runs it cannot change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def can_run_apart() -> bool:
    """Whether this system forks safely after libraries with threads of their own were loaded: Linux does."""
    return sys.platform == "linux"


def run_apart(function: Callable[[], T], *, most_s: float = 0) -> T:
    """The function's result, or its exception, from a forked child that sees everything the caller has.

    Result and exception travel pickled. Nothing the child changes or prints reaches the caller. No thread of the
    caller exists in the child: it must not wait for one.
    most_s: seconds that the child may compute, whoever else uses the machine; 0: any.
    Raises CrashedError where the child ended by a signal or left no result, OutOfTimeError where it takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="espan-deploy-") as folder:
        said, result = Path(folder) / "said", Path(folder) / "result"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads, from Python 3.12 on
            child = os.fork()
        if child == 0:
            _be_the_child(function, said, result, most_s)
        try:
            _, status = os.waitpid(child, 0)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        code = os.waitstatus_to_exitcode(status)
        if code != 0 or not result.is_file():
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            lines = said.read_text(errors="replace").strip().splitlines() if said.is_file() else []
            raise CrashedError(": ".join((how, *filter(None, (" ".join(lines[-TAIL_LINES:]),)))))
        failed, value = pickle.loads(result.read_bytes())
    if failed:
        raise value
    answer: T = value
    return answer


def _be_the_child(function: Callable[[], object], said: Path, result: Path, most_s: float) -> None:
    """Run the function and end the process, whatever happens."""
    # What the caller left behind is not this process's to free: runtimes with threads of their own would crash at it.
    gc.freeze()
    answering = threading.Lock()

    def end(failed: bool, value: object) -> None:
        with answering:
            part = result.with_suffix(".part")
            part.write_bytes(pickle.dumps((failed, value)))
            part.replace(result)
            os._exit(0)

    def watch(working: int) -> None:
        """In a thread: a signal crashed PyTorch's exporter now and then."""
        while (left := most_s - time.process_time()) > 0:
            time.sleep(min(max(left, 0.01), 1.0))
        end(True, OutOfTimeError(list(traceback.extract_stack(sys._current_frames()[working]))))

    try:
        sys.stdout = sys.stderr = said.open("a", buffering=1, errors="replace")
        for stream in (1, 2):
            os.dup2(sys.stdout.fileno(), stream)
        if most_s:
            threading.Thread(target=watch, args=(threading.get_ident(),), daemon=True).start()
        try:
            failed, value = False, function()
        except Exception as exc:
            failed, value = True, exc
        end(failed, value)
    finally:
        os._exit(1)
