"""An engine opened for the stages: chosen, in its precision, with as many lanes as there is work for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from espan_deploy.backends import Choice
from espan_deploy.backends.base import Runner
from espan_deploy.backends.choice import Decision, Workload, decide
from espan_deploy.backends.model import ModelFile
from espan_deploy.backends.precision import EXACT
from espan_deploy.description import ModelDescription
from espan_deploy.machine import memory_bytes, usable_cores
from espan_deploy.pipeline.infer import Fallback, Lane
from espan_deploy.pipeline.plan import (
    DEFAULT_BYTES_PER_PIXEL,
    MAX_BATCH,
    BatchPolicy,
    TilePolicy,
    fixed_batch,
    pixels_within,
)
from espan_deploy.pipeline.run import RunSettings

DEFAULT_MEMORY = 2 << 30

MEMORY_PER_CORE = 512 << 20
"""Where that is more. Half of it is for images in flight: one at work and one that waits, each 64 MP of result at most.
So many are in flight as cores are kept busy, by their own inference or by a GPU's rate: docs/host.md."""

MEMORY_SHARE = 0.4
"""Of the machine's memory, where that is less."""

GPU_BATCH_PIXELS = 1 << 20
"""A GPU is full with a megapixel per call."""


@dataclass(frozen=True)
class EngineSettings:
    """What the user may choose of the engine and of the work it is given.

    tile: "auto", "none" or a side in pixels, halo included. memory: bytes for activations and images in flight, None
    for a share of the machine's. batch: images per engine call, None for as many as pay. threads: for everything,
    None for all.
    """

    engine: str = "auto"
    precision: str = "auto"
    tile: int | str = "auto"
    memory: int | None = None
    batch: int | None = None
    threads: int | None = None

    @property
    def memory_bytes(self) -> int:
        """As asked for, or this machine's share."""
        wanted = max(DEFAULT_MEMORY, MEMORY_PER_CORE * (self.threads or usable_cores()))
        return self.memory or min(wanted, int(MEMORY_SHARE * memory_bytes()))

    def tiles(self, height: int, width: int, description: ModelDescription) -> int:
        """How many tiles an image would have, as far as can be told before the engine is open.

        Raises InputError where it must be cut but cannot be.
        """
        policy = TilePolicy(self.tile, pixels_within(self.memory_bytes, DEFAULT_BYTES_PER_PIXEL, 1))
        return sum(len(row) for row in policy.plan(height, width, description))


class OpenEngine:
    """Runners that share an engine, and what falls back on FP32 for them. Use as a context manager, or close it.

    at_once: tiles or images that there are to work on at once; None for more than there are threads.
    workload: what there is to do, so that measuring may pay; None where it is not known.
    lanes: how many runners, where that is settled already; then, as an attribute, one for each inference thread.
    Raises BackendUnavailableError or EngineBuildError where it cannot be opened.
    """

    def __init__(
        self,
        model: ModelFile,
        choice: Choice,
        settings: EngineSettings,
        *,
        at_once: int | None,
        workload: Workload | None = None,
        lanes: int | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self.threads = settings.threads or usable_cores()
        self.decision: Decision = decide(
            model,
            choice,
            engine=settings.engine,
            precision=settings.precision,
            threads=self.threads,
            at_once=at_once,
            workload=workload,
        )
        decision = self.decision
        self.runners = decision.backend.open_runners(
            model, precision=decision.precision, threads=self.threads, lanes=lanes or decision.lanes
        )
        self.fallback = Fallback(self._fp32 if decision.precision != EXACT else None)
        self.lanes = [Lane(runner, self.fallback) for runner in self.runners]

    def __enter__(self) -> OpenEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every runner."""
        for runner in self.runners:
            runner.close()
        self.fallback.close()

    def _fp32(self) -> Runner:
        return self.decision.backend.open(self.model, precision=EXACT, threads=self.settings.threads)

    def run_settings(self) -> RunSettings:
        """How the stages use it."""
        settings = self.settings
        memory = settings.memory_bytes
        details = self.runners[0].info.details
        per_pixel = int(details.get("bytes_per_pixel") or DEFAULT_BYTES_PER_PIXEL)
        sides = (details["max_height"], details["max_width"]) if "max_height" in details else None
        return RunSettings(
            tiles=TilePolicy(settings.tile, pixels_within(memory // 2, per_pixel, len(self.runners)), sides),
            batch=self._batch(details),
            in_flight_bytes=memory // 2,
            # One for every core, as they hold no lock. Decoding takes at most half as long as encoding does, even where
            # files are PNG on both sides.
            decoders=max(1, self.threads // 2),
            encoders=self.threads,
        )

    def _batch(self, details: Mapping[str, Any]) -> BatchPolicy:
        """As asked for; else as many as pay on a CPU, or as the profile of a GPU's engine allows."""
        most = int(details.get("max_batch", MAX_BATCH))
        if self.settings.batch is not None:
            return fixed_batch(min(self.settings.batch, most))
        return BatchPolicy(most, GPU_BATCH_PIXELS) if "max_batch" in details else BatchPolicy()

    def report(self) -> dict[str, Any]:
        """What a report says of it."""
        decision = self.decision
        report = {"backend": decision.backend.name, **asdict(self.runners[0].info), "precision": decision.precision}
        return report | {"chosen_because": decision.reason, "choice": decision.to_json()}


@dataclass(frozen=True)
class Decided:
    """What a model runs in, so that another machine takes the same: a backend's name, and a precision."""

    engine: str
    precision: str
