"""Which precision to run in: the fastest that this hardware has and that this model survives."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.backends import Backend
from espan_deploy.backends.base import Runner
from espan_deploy.backends.finite import NonFiniteError
from espan_deploy.backends.model import ModelFile

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
    key = _key(backend, model, preferred)
    kept = _read_cache()
    psnr = kept.get(key)
    if not isinstance(psnr, float):
        psnr = measure(backend, model, preferred, threads=threads)
        _write_cache({**kept, key: psnr})
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


def made_up_photograph(side: int, multiple: int) -> NDArray[np.uint8]:
    """(H, W, 3): gradients, edges, and texture with a photograph's spectrum."""
    side += -side % multiple
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij"))
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, side, side))) / frequency, axes=(1, 2)).real
    noise /= noise.std()
    planes = 0.5 + 0.15 * noise + 0.3 * np.stack([x - 0.5, y - 0.5, x - y])
    planes[:, (x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.02] += 0.4
    planes[:, (np.abs(x + y - 1.3) < 0.03)] = 0.05
    return np.ascontiguousarray((planes.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def _key(backend: Backend, model: ModelFile, precision: str) -> str:
    return "/".join((model.sha256, backend.name, backend.version, precision, _machine(), str(MEASURE_VERSION)))


def _machine() -> str:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    import platform

    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Where the user's caches of ours lie."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "espan-deploy"


def _read_cache() -> Mapping[str, Any]:
    try:
        document = json.loads((cache_folder() / "precision.json").read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _write_cache(document: Mapping[str, Any]) -> None:
    # Without a place to keep it, it is measured again next time.
    with contextlib.suppress(OSError):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            json.dump(dict(document), file)
        Path(file.name).replace(folder / "precision.json")
