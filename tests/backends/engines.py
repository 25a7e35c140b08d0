"""Engines whose speed and numbers a test sets, on a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from clocks import FakeClock
from synthetic import SCALE, synthetic_description

from espan_deploy.backends.base import EngineInfo, Images, Runner
from espan_deploy.errors import EngineBuildError


class SpeedRunner(Runner):
    """Nearest neighbours, ``off`` levels away, in ``seconds`` a call."""

    def __init__(self, clock: FakeClock, seconds: float, off: int, log: list[str], name: str) -> None:
        self._clock, self._seconds, self._off, self._log, self._name = clock, seconds, off, log, name
        self.description = synthetic_description(network="tiny")
        self.info = EngineInfo("fake", "1", "CPU", "fp32")

    def _infer(self, images: Images) -> Images:
        self._clock.sleep(self._seconds)
        self._log.append(self._name)
        large = images.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
        return np.clip(large.astype(int) + self._off, 0, 255).astype(images.dtype)

    def close(self) -> None:
        self._log.append(f"close {self._name}")


@dataclass
class SpeedBackend:
    """seconds: of a call, by precision, or by precision and lanes. off: levels, by precision. broken: does not open."""

    name: str
    clock: FakeClock
    seconds: dict[Any, float]
    off: dict[str, int] = field(default_factory=dict)
    opening: float = 0.02
    broken: bool = False
    version: str = "1"
    max_lanes: int = 8
    log: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.name

    @property
    def module(self) -> Any:
        return self

    @property
    def PRECISIONS(self) -> tuple[str, ...]:  # noqa: N802
        return tuple(self.usable_precisions())

    def usable_precisions(self) -> list[str]:
        return [key for key in self.seconds if isinstance(key, str)]

    def open_runners(self, _model: Any, *, precision: str, threads: int | None, lanes: int) -> list[Runner]:
        del threads
        self.clock.sleep(self.opening)
        if self.broken:
            raise EngineBuildError(f"{self.name} refuses it")
        seconds = self.seconds.get((precision, lanes), self.seconds[precision])
        return [
            SpeedRunner(self.clock, seconds, self.off.get(precision, 0), self.log, f"{precision}x{lanes}")
            for _ in range(lanes)
        ]
