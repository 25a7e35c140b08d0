"""How long something takes: warm up until stable, then all contenders in turn, round by round, so that drift hits all
alike. One definition, for benchmarks and for the choice of an engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

Clock = Callable[[], float]
"""Seconds since some moment; never runs backwards."""

Call = Callable[[Any], "Mapping[str, float] | None"]
"""Upscales one input; returns the milliseconds of its stages where the engine tells them."""

WINDOW = 4
"""Warm-up runs that are compared with as many before them."""

STABLE = 0.05
"""Change of their median below which a contender is warm."""


@dataclass(frozen=True)
class WarmUpLimits:
    """When to stop waiting for stability: after this many runs or seconds, whichever comes first."""

    runs: int = 40
    seconds: float = 5.0


@dataclass(frozen=True)
class WarmUp:
    """What was run and thrown away. first_ms, last_ms: the very first call and the last. stable: whether it settled."""

    runs: int
    seconds: float
    first_ms: float
    last_ms: float
    stable: bool


@dataclass(frozen=True)
class Stop:
    """After ``runs`` rounds, or once ``seconds`` were spent per contender, whichever comes first."""

    runs: int
    seconds: float


@dataclass
class Series:
    """One contender's timings, one a round.

    started_s: since the first round. stages_ms: one list for every stage the engine tells of.
    """

    warm_up: WarmUp | None = None
    latencies_s: list[float] = field(default_factory=list)
    started_s: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)

    @property
    def latencies_ms(self) -> Values:
        """As an array."""
        return np.asarray(self.latencies_s, np.float64) * 1e3


@dataclass
class Measurement:
    """All series, by contender. interrupted: Ctrl-C ended it; what was measured until then is whole rounds."""

    series: dict[str, Series]
    rounds: int = 0
    seconds: float = 0.0
    interrupted: bool = False


Progress = Callable[[str], None]


def measure(
    contenders: Mapping[str, Call],
    inputs: Sequence[Any],
    stop: Stop,
    *,
    warm_up: WarmUpLimits | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress = lambda _: None,
) -> Measurement:
    """Warm every contender up, then time them in turn: A B C, A B C, ...

    inputs: taken in turn, a round uses one for all contenders. Every one is run once before anything is timed.
    KeyboardInterrupt ends the measurement, and is not raised.
    """
    limits = warm_up or WarmUpLimits()
    result = Measurement({name: Series() for name in contenders})
    begun = clock()
    try:
        for name, call in contenders.items():
            progress(f"warming up {name}")
            result.series[name].warm_up = warm_up_call(call, inputs, limits, clock)
        begun = clock()
        _take_turns(contenders, inputs, stop, result, clock=clock, progress=progress)
    except KeyboardInterrupt:
        result.interrupted = True
    result.seconds = clock() - begun
    for series in result.series.values():  # an interrupted round is not a round
        for values in (series.latencies_s, series.started_s, *series.stages_ms.values()):
            del values[result.rounds :]
    return result


def take_turns(contenders: Mapping[str, Call], inputs: Sequence[Any], stop: Stop, *, clock: Clock) -> Measurement:
    """Time contenders that are warm already, as :func:`measure` does. KeyboardInterrupt is raised."""
    result = Measurement({name: Series() for name in contenders})
    begun = clock()
    _take_turns(contenders, inputs, stop, result, clock=clock, progress=lambda _: None)
    result.seconds = clock() - begun
    return result


def _take_turns(
    contenders: Mapping[str, Call],
    inputs: Sequence[Any],
    stop: Stop,
    result: Measurement,
    *,
    clock: Clock,
    progress: Progress,
) -> None:
    begun = clock()
    while result.rounds < stop.runs:
        _round(contenders, inputs[result.rounds % len(inputs)], result, begun, clock)
        result.rounds += 1
        spent = clock() - begun
        progress(f"round {result.rounds}, {spent:.0f} s")
        whole = result.rounds % len(inputs) == 0
        if whole and spent >= stop.seconds * len(contenders):
            break


def _round(contenders: Mapping[str, Call], image: Any, result: Measurement, begun: float, clock: Clock) -> None:
    for name, call in contenders.items():
        series = result.series[name]
        started = clock()
        stages = call(image)
        ended = clock()
        series.started_s.append(started - begun)
        series.latencies_s.append(ended - started)
        for stage, milliseconds in (stages or {}).items():
            series.stages_ms.setdefault(stage, []).append(milliseconds)


def warm_up_call(call: Call, inputs: Sequence[Any], limits: WarmUpLimits, clock: Clock) -> WarmUp:
    """Run every input once, then the first of them until its time is stable or the limits are reached."""
    begun = clock()
    calls: list[float] = []
    for image in inputs:
        calls.append(_timed(call, image, clock))
    times: list[float] = []
    stable = False
    while not stable and len(times) < limits.runs and clock() - begun < limits.seconds:
        times.append(_timed(call, inputs[0], clock))
        if len(times) >= 2 * WINDOW:
            before, now = np.median(times[-2 * WINDOW : -WINDOW]), np.median(times[-WINDOW:])
            stable = bool(abs(now - before) <= STABLE * before)
    calls += times
    return WarmUp(len(calls), clock() - begun, calls[0] * 1e3, calls[-1] * 1e3, stable)


def _timed(call: Call, image: Any, clock: Clock) -> float:
    started = clock()
    call(image)
    return clock() - started
