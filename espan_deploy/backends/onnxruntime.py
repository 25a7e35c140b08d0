"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.backends.base import EngineInfo, Images, Runner, Step
from espan_deploy.backends.finite import check_finite
from espan_deploy.backends.model import ModelFile
from espan_deploy.errors import EngineBuildError, InferenceError, InputShapeError
from espan_deploy.machine import usable_cores

FATAL = 4
"""ONNX Runtime's severity of messages that nothing survives: lesser ones are in its exceptions, and it prints none."""


def one_line(exc: Exception) -> str:
    """What ONNX Runtime says, without its line breaks."""
    return " ".join(str(exc).split())


PRECISIONS = ("fp32", "int8")

KERNEL_SUFFIX = "_kernel_time"
BLOCKED_SUFFIX = "_nchwc"

PROVIDERS = ["CPUExecutionProvider"]


def unavailable_reason() -> str | None:
    """None where the module is installed."""
    return None if find_spec("onnxruntime") else "onnxruntime is not installed"


def preferred_precision() -> str:
    """FP32: its reduced precisions are slower on a CPU."""
    return "fp32"


def open_runners(model: ModelFile, *, precision: str, threads: int | None, lanes: int) -> list[Runner]:
    """Runners over shared sessions, each using its share of the threads."""
    sessions = Sessions(model, max(1, (threads or usable_cores()) // lanes))
    sessions.get("uint8")
    return [OnnxRuntimeRunner(sessions, precision) for _ in range(lanes)]


class Sessions:
    """One session for bytes and one for floats, made when first asked for."""

    def __init__(self, model: ModelFile, threads: int, providers: Sequence[Any] = PROVIDERS) -> None:
        self.model, self.threads, self.providers = model, threads, list(providers)
        self._lock = threading.Lock()
        self._sessions: dict[str, Any] = {}

    def get(self, pixels: str) -> Any:
        """The session for "uint8" or "float32" images."""
        with self._lock:
            if pixels not in self._sessions:
                self._sessions[pixels] = self._make(pixels)
            return self._sessions[pixels]

    def profile(self, images: Images, runs: int) -> list[Step]:
        """Median times of the kernels, slower than unobserved."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._make("uint8", profile=str(Path(folder) / "run"))
            for _ in range(runs + 1):
                session.run(None, {session.get_inputs()[0].name: images})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        times: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith(KERNEL_SUFFIX):
                key = (event["name"].removesuffix(KERNEL_SUFFIX), event["args"]["op_name"])
                times.setdefault(key, []).append(event["dur"] / 1e3)
        return [
            # In its own layout for convolutions a node has its value's name, and a suffix.
            Step((name, name.removesuffix(BLOCKED_SUFFIX)), kind, median(spent[1:] or spent))
            for (name, kind), spent in times.items()
        ]

    def _make(self, pixels: str, *, profile: str = "") -> Any:
        import onnx
        import onnxruntime

        from espan_deploy.pixels import with_pixels

        description = self.model.description
        if description.pixels == "uint8" and pixels != "uint8":
            raise InputShapeError(
                f"{self.model.path.name} takes bytes only, and this image has 16 bits per channel",
                hint="export the model with float pixels",
            )
        try:
            proto = onnx.load_from_string(self.model.data)
        except Exception as exc:  # protobuf's own, whichever implementation it is
            raise EngineBuildError(f"{self.model.path.name} is damaged: {exc}", hint="export it again") from exc
        proto = with_pixels(proto, description, "uint8" if pixels == "uint8" else "float32", guard=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = FATAL
        # Sizes change from call to call: memory patterns of past shapes would only pile up.
        options.enable_mem_pattern = False
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        try:
            return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=self.providers)
        except Exception as exc:  # its errors share no base class
            raise EngineBuildError(f"ONNX Runtime refuses {self.model.path.name}: {exc}") from exc


class OnnxRuntimeRunner(Runner):
    """A model in ONNX Runtime."""

    def __init__(self, sessions: Sessions, precision: str) -> None:
        import onnxruntime

        self._sessions = sessions
        self.description = sessions.model.description
        self.info = EngineInfo("onnxruntime", onnxruntime.__version__, "CPU", precision, threads=sessions.threads)

    def _infer(self, images: Images) -> Images:
        if images.dtype == np.uint8:
            result, *guard = self._run("uint8", images)
            if guard:
                check_finite(guard[0])
            return result
        value_range = np.float32(self.description.value_range)
        order = slice(None, None, -1 if self.description.color_order == "BGR" else 1)
        planes = np.ascontiguousarray(images[..., order].transpose(0, 3, 1, 2)) * value_range
        (result,) = self._run("float32", planes)
        return np.ascontiguousarray(result.transpose(0, 2, 3, 1)[..., order] / value_range)

    def profile(self, images: Images, runs: int) -> list[Step]:
        """ONNX Runtime's own profile, of a session made for it."""
        return self._sessions.profile(images, runs)

    def _run(self, pixels: str, images: Images) -> list[NDArray[Any]]:
        session = self._sessions.get(pixels)
        try:
            outputs: list[NDArray[Any]] = session.run(None, {session.get_inputs()[0].name: images})
            return outputs
        except Exception as exc:  # its errors share no base class
            raise InferenceError(f"ONNX Runtime failed on {images.shape}: {one_line(exc)}") from exc
