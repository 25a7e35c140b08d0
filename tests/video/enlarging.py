"""How films are upscaled in tests: in FP32, on a CPU engine."""

from __future__ import annotations

from collections.abc import Callable

from espan_deploy.pipeline.opened import UpscaleSettings
from espan_deploy.pipeline.report import Report

SETTINGS = UpscaleSettings(engine="onnxruntime", precision="fp32", threads=2)

Upscale = Callable[..., Report]
"""(source, output, **FilmSettings) -> Report."""
