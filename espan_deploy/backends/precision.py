"""Which precision to run in: the fastest that this hardware has and that this model survives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espan_deploy.backends import Backend
from espan_deploy.backends.base import Images, Runner
from espan_deploy.backends.finite import NonFiniteError
from espan_deploy.backends.kept import remembered
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.probe import PROBES

EXACT = "fp32"

MIN_PSNR_DB = 48.0
"""Between the bytes of both precisions. At 48 dB an image 30 dB from the truth loses 0.07 dB at most."""

SAME_DB = 200.0
"""Stands for results that are the same, whose distance in decibels has no end."""

PATCH = 96
"""Side of the images that are compared, in pixels."""

MEASURE_VERSION = 2
"""Goes up when the images or the measure change, so that kept figures do not outlive them."""


@dataclass(frozen=True)
class Nearness:
    """How near a precision's bytes are to FP32's. psnr_db: of each of PROBES, 0 where it is not finite."""

    psnr_db: Mapping[str, float]

    @classmethod
    def from_json(cls, document: Any) -> Nearness:
        """Of figures as they are kept. Raises KeyError or TypeError for what are none."""
        return cls({name: float(document[name]) for name in PROBES})

    @property
    def decisive(self) -> str:
        """The image that decides: the one where the precision is farthest off."""
        return min(self.psnr_db, key=lambda name: self.psnr_db[name])

    @property
    def passes(self) -> bool:
        """Whether it is near enough on every image."""
        return self.psnr_db[self.decisive] >= MIN_PSNR_DB

    def __str__(self) -> str:
        decisive = f"{self.psnr_db[self.decisive]:.1f} dB from {EXACT} on a made-up {self.decisive}, which decides"
        others = [f"{db:.1f} on a {name}" for name, db in self.psnr_db.items() if name != self.decisive]
        return "; ".join([decisive, *others, f"{MIN_PSNR_DB:.0f} asked for"])


@dataclass(frozen=True)
class Verdict:
    """A precision and why. nearness: to FP32, None where nothing was compared."""

    precision: str
    reason: str
    nearness: Nearness | None = None


def choose_precision(backend: Backend, model: ModelFile, precision: str, *, threads: int | None = None) -> Verdict:
    """The precision asked for, or with "auto" the hardware's own if its results are close to FP32's.

    The comparison takes a moment, once for each model, backend and machine: its figures are kept in the user's cache.
    Raises BackendUnavailableError where the backend does not have what was asked for.
    """
    if model.backend and precision in ("auto", model.description.precision):
        return Verdict(model.description.precision, "the engine was built in it")
    if precision != "auto":
        return Verdict(precision, "asked for")
    preferred = backend.module.preferred_precision()
    if preferred == EXACT:
        return Verdict(EXACT, f"{backend.name} is fastest in {EXACT} here")
    near = remembered(
        ("psnr", model.sha256, backend.name, backend.version, preferred, str(MEASURE_VERSION)),
        Nearness.from_json,
        lambda: measure(backend, model, preferred, threads=threads).psnr_db,
    )
    if near.passes:
        return Verdict(preferred, str(near), near)
    return Verdict(EXACT, f"{preferred} is {near}", near)


def measure(backend: Backend, model: ModelFile, precision: str, *, threads: int | None = None) -> Nearness:
    """How near a precision is to FP32 on made-up images."""
    images = probe_images(model, PATCH)
    results = []
    for each in (EXACT, precision):
        with backend.open(model, precision=each, threads=threads) as runner:
            results.append([upscaled_or_none(runner, image) for image in images])
    return nearness(*results)


def probe_images(model: ModelFile, side: int) -> list[Images]:
    """PROBES in a size that the model takes, each (1, side, side, 3)."""
    description = model.description
    side = max(side, description.min_size)
    return [make(side, description.size_multiple)[None] for make in PROBES.values()]


def upscaled_or_none(runner: Runner, image: Images) -> Images | None:
    """The result, or None where it is not finite."""
    try:
        return runner.infer(image)
    except NonFiniteError:
        return None


def nearness(exact: list[Images | None], other: list[Images | None]) -> Nearness:
    """Of another precision's results to the exact one's, in the order of PROBES."""
    pairs = zip(PROBES, exact, other, strict=True)
    return Nearness({name: 0.0 if a is None or b is None else psnr_db(a, b) for name, a, b in pairs})


def psnr_db(exact: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Between bytes."""
    error = float(np.mean((exact.astype(np.float64) - other) ** 2))
    return 10 * math.log10(255**2 / error) if error else SAME_DB
