"""Every failure a user can cause or meet, with its remedy and its exit code.

::

    EspanDeployError                     exit 1
    ├── CheckpointError                  a file that is no checkpoint, or not one that can be loaded
    │   └── UnknownNetworkError          its keys belong to no network that is known
    ├── FoldError                        a graph that cannot be folded
    ├── ExportError                      a network that cannot be exported, an ONNX file that cannot be used
    │   └── NotTraceableError            whatever example it is traced with
    ├── RecipeError                      an engine recipe that does not hold together
    ├── CalibrationError                 calibration data that cannot serve
    ├── InputError                       input images, folders, sizes
    │   └── InputShapeError              an array outside what the engine takes
    ├── VerificationError     exit 3     it ran, and the answer is no
    ├── PartialFailureError   exit 4     a batch finished, some files failed
    └── BackendError
        ├── BackendUnavailableError  exit 5  not installed, or no such device
        ├── EngineBuildError             the backend refused to build
        ├── EngineMismatchError          an engine for another device, version or model
        └── InferenceError               the backend failed while running

A broken invariant of our own is none of these: it keeps its traceback.
"""

from __future__ import annotations


class EspanDeployError(Exception):
    """Base of all expected failures.

    message: what happened, with what was got and what was expected.
    hint: what to do next, or "" where nothing is sensible.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CheckpointError(EspanDeployError):
    """A file that is no checkpoint, is damaged, or does not fit the network it claims to be."""


class UnknownNetworkError(CheckpointError):
    """A state dict whose keys belong to no known network."""


class FoldError(EspanDeployError):
    """A graph that cannot be folded."""


class ExportError(EspanDeployError):
    """A network that cannot be exported, or an ONNX file that cannot be used."""


class NotTraceableError(ExportError):
    """A network that cannot be exported whatever example it is traced with: it decides on pixels, or takes too long."""


class RecipeError(EspanDeployError):
    """An engine recipe that does not hold together."""


class CalibrationError(EspanDeployError):
    """Calibration data that cannot serve."""


class InputError(EspanDeployError):
    """Input images, folders or sizes that cannot be used."""


class InputShapeError(InputError):
    """An array whose shape or type the engine does not take."""


class VerificationError(EspanDeployError):
    """A check ran and the answer is no: parity, precision or regression."""

    exit_code = 3


class PartialFailureError(EspanDeployError):
    """A batch finished, and some of its files failed."""

    exit_code = 4


class BackendError(EspanDeployError):
    """Something about an inference backend."""


class BackendUnavailableError(BackendError):
    """A backend that is not installed, or a device that is not there."""

    exit_code = 5


class EngineBuildError(BackendError):
    """A backend refused to build an engine."""


class EngineMismatchError(BackendError):
    """An engine made for another device, version or model."""


class InferenceError(BackendError):
    """A backend failed while running."""
