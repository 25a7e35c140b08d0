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
    """Nearest neighbours, as far off and as fast as its backend says."""

    def __init__(self, backend: SpeedBackend, precision: str, lanes: int) -> None:
        self._backend, self._precision, self._name = backend, precision, f"{precision}x{lanes}"
        self._seconds = backend.seconds.get((precision, lanes), backend.seconds[precision])
        self._seen = 0
        self.description = synthetic_description(network="tiny")
        self.info = EngineInfo("fake", "1", "CPU", "fp32")

    def _infer(self, images: Images) -> Images:
        self._seen += 1
        self._backend.clock.sleep(self._backend.slow_calls.get((self._precision, self._seen), self._seconds))
        self._backend.log.append(self._name)
        large = images.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
        return np.clip(large.astype(int) + self._backend.off.get(self._precision, 0), 0, 255).astype(images.dtype)

    def close(self) -> None:
        self._backend.log.append(f"close {self._name}")


@dataclass
class SpeedBackend:
    """seconds: of a call, by precision, or by precision and lanes. slow_calls: instead, by precision and number of the
    call. off: levels, by precision. broken: does not open.
    """

    name: str
    clock: FakeClock
    seconds: dict[Any, float]
    off: dict[str, int] = field(default_factory=dict)
    slow_calls: dict[tuple[str, int], float] = field(default_factory=dict)
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

    def usable_precisions(self, model: Any = None) -> list[str]:
        return [key for key in self.seconds if isinstance(key, str) and (model is None or model.has(key))]

    def open_runners(self, _model: Any, *, precision: str, threads: int | None, lanes: int) -> list[Runner]:
        del threads
        self.clock.sleep(self.opening)
        if self.broken:
            raise EngineBuildError(f"{self.name} refuses it")
        return [SpeedRunner(self, precision, lanes) for _ in range(lanes)]
