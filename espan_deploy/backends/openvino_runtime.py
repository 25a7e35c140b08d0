"""OpenVINO without its model converter, which takes longer to import than all the rest and is not used here."""

from __future__ import annotations

import sys
from typing import Any

CONVERTER = "openvino.tools.ovc"


def openvino_module() -> Any:
    """``import openvino``; ``openvino.convert_model`` imports the converter when somebody calls it."""
    if "openvino" in sys.modules or CONVERTER in sys.modules:
        import openvino

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
    return openvino
