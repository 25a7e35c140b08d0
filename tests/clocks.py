"""A clock that only moves when told, and engines that take as long as they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import SCALE, synthetic_description, synthetic_model

from espan_deploy.backends.base import EngineInfo, Images, Runner, Step
from espan_deploy.backends.model import ModelFile
from espan_deploy.bench.contenders import Contender, Model


class FakeClock:
    """Seconds that pass only in ``sleep``."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class TimedCall:
    """Takes the next of some durations, then the last of them for ever. log: shared by all, who was called."""

    def __init__(self, name: str, clock: FakeClock, seconds: list[float], log: list[str] | None = None) -> None:
        self.name, self.clock, self.log = name, clock, [] if log is None else log
        self._durations = self._forever(seconds)
        self.calls = 0

    @staticmethod
    def _forever(seconds: list[float]) -> Iterator[float]:
        yield from seconds
        while True:
            yield seconds[-1]

    def __call__(self, _image: Any) -> None:
        self.calls += 1
        self.log.append(self.name)
        self.clock.sleep(next(self._durations))


class TimedRunner(Runner):
    """A runner on a fake clock. stages: of every call; steps: its profile; before: called first, may raise."""

    def __init__(
        self,
        clock: FakeClock,
        seconds: list[float],
        *,
        stages: dict[str, float] | None = None,
        before: Callable[[], None] = lambda: None,
        noise: int = 0,
        steps: list[Step] | None = None,
    ) -> None:
        self._call = TimedCall("runner", clock, seconds)
        self._before, self._noise, self._steps = before, noise, steps
        self.description = synthetic_description(parameters=1000, multiply_adds=2_000_000, network="tiny")
        self.info = EngineInfo("fake", "1.0", "CPU", "fp32", threads=1)
        if stages is not None:
            self.last_stages_ms = stages

    def profile(self, images: Images, runs: int) -> list[Step] | None:
        return self._steps

    def _infer(self, images: Images) -> Images:
        self._before()
        self._call(images)
        large = images.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
        return np.where(large < 255 - self._noise, large + self._noise, large).astype(images.dtype)


def contender(
    name: str, runner: Runner, *, engine: str = "onnxruntime", precision: str = "fp32", network: str = "tiny"
) -> Contender:
    description = synthetic_description(network=network, title=name, parameters=1000, multiply_adds=2_000_000)
    file = ModelFile(Path(f"{name}.onnx"), synthetic_model().SerializeToString(), description)
    return Contender(f"{name} · {engine} {precision}", Model(name, file), engine, precision, runner)
