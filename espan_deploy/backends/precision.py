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
from espan_deploy.backends.model import INT8, ModelFile
from espan_deploy.backends.probe import PROBES

EXACT = "fp32"

MIN_PSNR_DB = 48.0
"""Between the bytes of both precisions. At 48 dB an image 30 dB from the truth loses 0.07 dB at most."""

SAME_DB = 200.0
"""Stands for results that are the same, whose distance in decibels has no end."""

MIN_INT8_PSNR_DB = 40.0
"""The same in INT8, whose files were held to a budget on photographs before they were written. What is farther off was
calibrated on other pictures than these, or on processors without VNNI: sums of bytes overflow there in some engines.
"""

PATCH = 96
"""Side of the images that are compared, in pixels."""

MEASURE_VERSION = 2
"""Goes up when the images or the measure change, so that kept figures do not outlive them."""


@dataclass(frozen=True)
class Nearness:
    """How near a precision's bytes are to FP32's. psnr_db: of each of PROBES, 0 where it is not finite; least_db: asked
    for.
    """

    psnr_db: Mapping[str, float]
    least_db: float = MIN_PSNR_DB

    @classmethod
    def from_json(cls, document: Any, precision: str) -> Nearness:
        """Of figures as they are kept. Raises KeyError or TypeError for what are none."""
        return cls({name: float(document[name]) for name in PROBES}, least_db(precision))

    @property
    def decisive(self) -> str:
        """The image that decides: the one where the precision is farthest off."""
        return min(self.psnr_db, key=lambda name: self.psnr_db[name])

    @property
    def passes(self) -> bool:
        """Whether it is near enough on every image."""
        return self.psnr_db[self.decisive] >= self.least_db

    def __str__(self) -> str:
        decisive = f"{self.psnr_db[self.decisive]:.1f} dB from {EXACT} on a made-up {self.decisive}, which decides"
        others = [f"{db:.1f} on a {name}" for name, db in self.psnr_db.items() if name != self.decisive]
        return "; ".join([decisive, *others, f"{self.least_db:.0f} asked for"])


def least_db(precision: str) -> float:
    """Between the bytes of this precision and FP32's, or it is not taken unasked."""
    return MIN_INT8_PSNR_DB if precision == INT8 else MIN_PSNR_DB


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
    if model.only_int8:
        return Verdict(INT8, "there is no other form of the model")
    preferred = backend.module.preferred_precision()
    if preferred == EXACT:
        return Verdict(EXACT, f"{backend.name} is fastest in {EXACT} here")
    near = remembered(
        ("psnr", model.sha256, backend.name, backend.version, preferred, str(MEASURE_VERSION)),
        lambda figures: Nearness.from_json(figures, preferred),
        lambda: measure(backend, model, preferred, threads=threads).psnr_db,
    )
    if near.passes:
        return Verdict(preferred, str(near), near)
    return Verdict(EXACT, f"{preferred} is {near}", near)


def measure(backend: Backend, model: ModelFile, precision: str, *, threads: int | None = None) -> Nearness:
    """How near a precision is to FP32 on made-up images."""
    images = probe_images(model, PATCH)
    results: list[list[Images | None]] = []
    for each in (EXACT, precision):
        with backend.open(model, precision=each, threads=threads) as runner:
            results.append([upscaled_or_none(runner, image) for image in images])
    return nearness(results[0], results[1], precision)


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


def nearness(exact: list[Images | None], other: list[Images | None], precision: str) -> Nearness:
    """Of another precision's results to the exact one's, in the order of PROBES."""
    pairs = zip(PROBES, exact, other, strict=True)
    found = {name: 0.0 if a is None or b is None else psnr_db(a, b) for name, a, b in pairs}
    return Nearness(found, least_db(precision))


def psnr_db(exact: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Between bytes."""
    apart = np.subtract(exact, other, dtype=np.int16).ravel().astype(np.float32)
    error = float(apart @ apart) / apart.size
    return 10 * math.log10(255**2 / error) if error else SAME_DB
