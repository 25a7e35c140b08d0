"""OpenVINO without its model converter, which takes longer to import than all the rest and is not used here."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np

CONVERTER = "openvino.tools.ovc"


def openvino_module() -> Any:
    """``import openvino``; ``openvino.convert_model`` imports the converter when somebody calls it."""
    if "openvino" in sys.modules or CONVERTER in sys.modules:
        import openvino

        _find_numpy()
        return openvino
    # None makes importing it raise ImportError, and OpenVINO goes on without, as where it is not installed.
    sys.modules[CONVERTER] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules[CONVERTER]

    def convert_model(*arguments: Any, **options: Any) -> Any:
        from openvino.tools.ovc import convert_model

        return convert_model(*arguments, **options)

    openvino.convert_model = convert_model
    _find_numpy()
    return openvino


@cache
def _find_numpy() -> None:
    """Let OpenVINO find numpy now, in one thread.

    It does on the first array, behind a lock that others wait for while they hold the interpreter, and its owner waits
    for the interpreter: two threads that came first together would wait for ever.
    """
    import openvino

    _ = openvino.op.Constant(np.zeros(1, np.float32)).data
