"""What "auto" chooses from on a CPU, and what it times them on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt

import numpy as np

from espan_deploy.backends import BACKENDS, Backend
from espan_deploy.backends.base import Images, Runner
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.precision import upscaled_or_none
from espan_deploy.backends.probe import PROBES

PROBE_SIDE = 96
"""Of the made-up images that are timed, in pixels. In calls of these many pixels the engines rank as in larger ones."""

SIDES = (24, 48, PROBE_SIDE)
"""Size classes, by the side of what an engine call gets. Small images come in batches: a call has as many pixels."""


@dataclass(frozen=True)
class Candidate:
    """A model file in an engine. lanes: images at work at once, which share the threads."""

    model: ModelFile
    backend: Backend
    precision: str
    lanes: int = 1

    @property
    def name(self) -> str:
        """Unique among the candidates of a model."""
        return f"{self.engine}, {self.lanes} at once"

    @property
    def engine(self) -> str:
        """Without its lanes."""
        return f"{self.backend.name} {self.precision}"


def candidates(models: Sequence[ModelFile], usable: Sequence[Backend], precision: str) -> list[Candidate]:
    """Every engine and precision for files of one network, the simpler first; a tie keeps the earlier.

    precision: only this one, unless it is "auto".
    """
    return [
        Candidate(model, backend, each)
        for backend in usable
        for model in models
        for each in (backend.usable_precisions(model) if precision == "auto" else [precision])
        if each in backend.module.PRECISIONS and model.has(each)
    ]


def usable_on_cpu() -> list[Backend]:
    """The CPU's backends that can run here, in order of preference."""
    return [each for each in BACKENDS if each.on_cpu and each.automatic and each.unavailable_reason() is None]


def lane_counts(most: int) -> list[int]:
    """Ways to split the cores: one image on all of them, as many images as there may be, and half as many."""
    return list(dict.fromkeys([1, most, max(1, most // 2)]))


def size_class(height: int, width: int) -> int:
    """Of engine calls of this size: one of SIDES."""
    return next((side for side in SIDES if side * side >= height * width), SIDES[-1])


def probe_shape(model: ModelFile, side: int) -> tuple[int, int, int, int]:
    """(N, H, W, 3) of a batch of PROBES for a size class, in a size that the model takes."""
    description = model.description
    side = max(side, description.min_size)
    side += -side % description.size_multiple
    count = max(1, PROBE_SIDE // side)
    return count * count, side, side, 3


def probes(model: ModelFile, side: int) -> list[Images]:
    """PROBES cut into batches of :func:`probe_shape`."""
    images, side, _, _ = probe_shape(model, side)
    count = isqrt(images)
    batches = []
    for make in PROBES.values():
        whole = make(count * side, model.description.size_multiple)
        rows = whole.reshape(count, side, count, side, 3).transpose(0, 2, 1, 3, 4)
        batches.append(np.ascontiguousarray(rows.reshape(-1, side, side, 3)))
    return batches


class Opened:
    """A candidate at work. first_results: of its first calls, one for each of PROBES; None where not finite.

    Raises BackendError where it cannot be opened, or run.
    """

    def __init__(self, candidate: Candidate, threads: int) -> None:
        self.candidate = candidate
        self.runners: list[Runner] = candidate.backend.open_runners(
            candidate.model, precision=candidate.precision, threads=threads, lanes=candidate.lanes
        )
        self.first_results: list[Images | None] = []
        self._pool = ThreadPoolExecutor(candidate.lanes) if candidate.lanes > 1 else None

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Do what the first call of a batch of this shape would wait for: once, as the runners share their engine."""
        self.runners[0].prepare(shape)

    def call(self, images: Images) -> None:
        """Run a batch on every lane at once."""
        if self._pool is None:
            result = upscaled_or_none(self.runners[0], images)
        else:
            result, *_ = self._pool.map(upscaled_or_none, self.runners, [images] * len(self.runners))
        if len(self.first_results) < len(PROBES):
            self.first_results.append(result)

    def close(self) -> None:
        """Close the runners."""
        if self._pool is not None:
            self._pool.shutdown()
        for runner in self.runners:
            runner.close()
