"""Which precision to run in: the fastest that this hardware has and that this model survives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espan_deploy.backends import Backend
from espan_deploy.backends.base import Runner
from espan_deploy.backends.finite import NonFiniteError
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.probe import made_up_photograph, remembered

EXACT = "fp32"

MIN_PSNR_DB = 48.0
"""Between the bytes of both precisions. At 48 dB an image 30 dB from the truth loses 0.07 dB at most."""

PATCH = 96
"""Side of the image that is compared, in pixels."""

MEASURE_VERSION = 1
"""Goes up when the image or the measure changes, so that kept figures do not outlive them."""


@dataclass(frozen=True)
class Verdict:
    """A precision and why. psnr_db: against FP32, None where nothing was compared."""

    precision: str
    reason: str
    psnr_db: float | None = None


def choose_precision(backend: Backend, model: ModelFile, precision: str, *, threads: int | None = None) -> Verdict:
    """The precision asked for, or with "auto" the hardware's own if its results are close to FP32's.

    The comparison takes a moment, once for each model, backend and machine: its figure is kept in the user's cache.
    Raises BackendUnavailableError where the backend does not have what was asked for.
    """
    if model.backend and precision in ("auto", model.description.precision):
        return Verdict(model.description.precision, "the engine was built in it")
    if precision != "auto":
        return Verdict(precision, "asked for")
    preferred = backend.module.preferred_precision()
    if preferred == EXACT:
        return Verdict(EXACT, f"{backend.name} is fastest in {EXACT} here")
    psnr = remembered(
        ("psnr", model.sha256, backend.name, backend.version, preferred, str(MEASURE_VERSION)),
        (float,),
        lambda: measure(backend, model, preferred, threads=threads),
    )
    figure = f"{psnr:.1f} dB from {EXACT} on a made-up photograph, {MIN_PSNR_DB:.0f} asked for"
    if psnr >= MIN_PSNR_DB:
        return Verdict(preferred, figure, psnr)
    return Verdict(EXACT, f"{preferred} is {figure}", psnr)


def measure(backend: Backend, model: ModelFile, precision: str, *, threads: int | None = None) -> float:
    """PSNR in dB between the bytes of a precision and of FP32, on a made-up photograph; 0 where it is not finite."""
    image = made_up_photograph(PATCH, model.description.size_multiple)[None]
    results = []
    for each in (EXACT, precision):
        with backend.open(model, precision=each, threads=threads) as runner:
            try:
                results.append(_upscale(runner, image))
            except NonFiniteError:
                return 0.0
    error = float(np.mean((results[0] - results[1]) ** 2))
    return 10 * math.log10(255**2 / error) if error else 200.0


def _upscale(runner: Runner, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return runner.infer(image).astype(np.float64)
