"""TensorRT and TensorRT-RTX: one module shape under two names, and what both need around them."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from espan_deploy.errors import BackendUnavailableError


@dataclass(frozen=True)
class Flavour:
    """One of the two. modules: names it may be installed under, in order. suffix: of messages, none of files."""

    name: str
    title: str
    modules: tuple[str, ...]
    remedy: str


FLAVOURS = {
    "tensorrt": Flavour("tensorrt", "TensorRT", ("tensorrt",), "pip install 'espan-deploy[gpu]'"),
    "tensorrt-rtx": Flavour(
        "tensorrt-rtx", "TensorRT-RTX", ("tensorrt_rtx", "tensorrt_rtx_bindings"), "pip install 'espan-deploy[rtx]'"
    ),
}


def load_module(name: str) -> Any:
    """The module of "tensorrt" or "tensorrt-rtx". Raises BackendUnavailableError, naming the remedy."""
    flavour = FLAVOURS[name]
    broken = ""
    for module in flavour.modules:
        try:
            return import_module(module)
        except ModuleNotFoundError as exc:
            if exc.name != module:
                broken = f": {exc}"
        except (ImportError, OSError) as exc:  # OSError: its libraries do not load
            broken = f": {exc}"
    what = "cannot be loaded" if broken else "is not installed"
    raise BackendUnavailableError(f"{flavour.title} {what}{broken}", hint=flavour.remedy)


def unavailable_reason(name: str) -> str | None:
    """Why the module cannot be imported, or None."""
    try:
        load_module(name)
    except BackendUnavailableError as exc:
        return exc.message
    return None


NOISE = re.compile(r"^\[?(MemUsage|TrtTimer)")

MEMORY_CHECK = re.compile(r"Peak memory usage of TRT CPU/GPU memory allocators: CPU (\d+) MiB, GPU (\d+) MiB")

FOLLOW_UP = "checkMacros.cpp::catchCudaError"
"""An error after the error: that there is no GPU to ask about it."""


class Messages:
    """What the runtime logged: errors, warnings, and the memory its allocators took, in MiB."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.allocator_mib: dict[str, int] = {}

    def add(self, severity: str, text: str) -> None:
        """Keep one message. severity: the name TensorRT gives it."""
        found = MEMORY_CHECK.search(text)
        if found:
            self.allocator_mib = {"cpu": int(found[1]), "gpu": int(found[2])}
        if severity in ("ERROR", "INTERNAL_ERROR") and FOLLOW_UP not in text:
            self.errors.append(text.strip())
        elif severity == "WARNING" and not NOISE.match(text):
            self.warnings.append(text.strip())

    def summary(self) -> list[str]:
        """The warnings, each once, with how often it came where that was more."""
        return [text if count == 1 else f"{text} (x{count})" for text, count in Counter(self.warnings).items()]

    def explanation(self) -> str:
        """The errors in one line, or that there are none."""
        return "; ".join(dict.fromkeys(self.errors)) or "it gives no reason"


class _Ears:
    """Where one module's messages go: to whoever listens in the thread they come from."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._all: list[Messages] = []

    def hear(self, severity: str, text: str) -> None:
        listening: list[Messages] = getattr(self._here, "listening", []) or self._all
        if listening:
            listening[-1].add(severity, text)

    @contextmanager
    def open(self) -> Iterator[Messages]:
        messages = Messages()
        here = self._here.__dict__.setdefault("listening", [])
        here.append(messages)
        self._all.append(messages)
        try:
            yield messages
        finally:
            here.remove(messages)
            self._all.remove(messages)


_loggers: dict[str, tuple[Any, _Ears]] = {}
_loggers_lock = threading.Lock()


def logger_of(trt: Any) -> Any:
    """The one logger of this module in this process; it prints nothing.

    TensorRT keeps a single logger, the first it was given, for as long as anything lives that was made with it
    (NVIDIA/TensorRT#1475): a second one would never hear a word.
    """
    return _logger_and_ears(trt)[0]


def listening(trt: Any) -> AbstractContextManager[Messages]:
    """What the module says while the block runs, in this thread; and in its own threads, if nobody began later."""
    return _logger_and_ears(trt)[1].open()


def _logger_and_ears(trt: Any) -> tuple[Any, _Ears]:
    with _loggers_lock:
        if trt.__name__ not in _loggers:
            ears = _Ears()

            class Logger(trt.ILogger):  # type: ignore[misc]
                def __init__(self) -> None:
                    trt.ILogger.__init__(self)

                def log(self, severity: Any, message: str) -> None:
                    ears.hear(severity.name, message)

            _loggers[trt.__name__] = Logger(), ears
        return _loggers[trt.__name__]


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is: the outermost phase under way, its step, and its steps in all."""

    phase: str
    step: int
    steps: int


class Interruption:
    """Why a build was stopped: TensorRT swallows what a callback raises, so it is kept here."""

    raised: BaseException | None = None


def make_progress_monitor(
    trt: Any, report: Callable[[BuildProgress], None], interruption: Interruption, phases: Iterable[str] = ()
) -> Any:
    """A progress monitor of this module that reports the outermost phases, and stops the build if that raises.

    TensorRT may call it from several threads at once. phases: only these, all where empty.
    """
    wanted = frozenset(phases)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def _tell(self, phase: str, step: int) -> bool:
            if wanted and phase not in wanted:
                return interruption.raised is None
            try:
                report(BuildProgress(phase, step, self.steps.get(phase, 0)))
            except BaseException as exc:  # raised again once the builder has returned
                interruption.raised = interruption.raised or exc
            return interruption.raised is None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._tell(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def capability_name(trt: Any, capability: str) -> Any:
    """The module's value for a compute capability such as "8.6", or None where it knows none."""
    return getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)


def known_capabilities(trt: Any) -> list[str]:
    """The compute capabilities the module can build for without the GPU: "7.5", "8.0", ..."""
    names = [name[2:] for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    return [f"{name[:-1]}.{name[-1]}" for name in sorted(names, key=int)]
