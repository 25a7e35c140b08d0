"""Timing on a clock of our own: warm-up, interleaving, when it stops, what an interruption leaves."""

from __future__ import annotations

import numpy as np
import pytest
from clocks import FakeClock, TimedCall

from espan_deploy.timing import WINDOW, Stop, WarmUpLimits, measure

IMAGES = ["image"]


def timed(clock: FakeClock, log: list[str], **seconds: list[float]) -> dict[str, TimedCall]:
    return {name: TimedCall(name, clock, durations, log) for name, durations in seconds.items()}


def test_contenders_take_turns() -> None:
    clock, log = FakeClock(), list[str]()
    calls = timed(clock, log, a=[0.01], b=[0.03])
    measured = measure(calls, IMAGES, Stop(5, 1000), clock=clock)
    assert log[-10:] == ["a", "b"] * 5
    assert measured.rounds == 5
    assert measured.series["a"].latencies_s == pytest.approx([0.01] * 5)
    assert measured.series["b"].latencies_s == pytest.approx([0.03] * 5)
    assert measured.series["a"].started_s == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16])
    assert measured.series["b"].started_s == pytest.approx([0.01, 0.05, 0.09, 0.13, 0.17])


def test_warm_up_waits_until_stable_and_is_not_counted() -> None:
    clock, log = FakeClock(), list[str]()
    cooling = [2.0, 1.0, 0.5, 0.2, 0.1]
    calls = timed(clock, log, a=cooling)
    series = measure(calls, IMAGES, Stop(4, 1000), clock=clock).series["a"]
    assert series.warm_up is not None
    assert series.warm_up.stable
    assert series.warm_up.first_ms == pytest.approx(2000.0)
    assert series.warm_up.runs >= 1 + 2 * WINDOW
    assert series.latencies_s == pytest.approx([0.1] * 4)


def test_what_never_settles_is_told() -> None:
    clock = FakeClock()
    growing = [1.2**i / 1000 for i in range(60)]
    limits = WarmUpLimits(runs=20, seconds=1000)
    warm_up = (
        measure(timed(clock, [], a=growing), IMAGES, Stop(2, 1000), warm_up=limits, clock=clock).series["a"].warm_up
    )
    assert warm_up is not None
    assert not warm_up.stable
    assert warm_up.runs == 21


def test_warm_up_ends_with_its_time() -> None:
    clock = FakeClock()
    limits = WarmUpLimits(runs=1000, seconds=5)
    warm_up = measure(timed(clock, [], a=[2.0]), IMAGES, Stop(1, 1), warm_up=limits, clock=clock).series["a"].warm_up
    assert warm_up is not None
    assert warm_up.runs == 3
    assert not warm_up.stable


def test_every_input_is_run_before_anything_is_timed() -> None:
    clock = FakeClock()
    seen: list[str] = []

    def call(image: str) -> None:
        seen.append(image)
        clock.sleep(0.01)

    measured = measure({"a": call}, ["x", "y", "z"], Stop(6, 1000), clock=clock)
    assert seen[:3] == ["x", "y", "z"]
    assert seen[-6:] == ["x", "y", "z", "x", "y", "z"]
    assert measured.series["a"].warm_up is not None
    assert measured.series["a"].warm_up.runs == len(seen) - 6


def test_time_is_shared_by_the_contenders_and_ends_on_a_whole_pass() -> None:
    clock = FakeClock()
    calls = timed(clock, [], a=[1.0], b=[1.0])
    measured = measure(calls, ["x", "y", "z"], Stop(1000, 4.0), clock=clock)
    assert measured.rounds == 6  # 8 s are up after the fourth round, the pass ends with the sixth
    assert measured.seconds == pytest.approx(12.0)


def test_drift_hits_all_alike() -> None:
    """A machine that gets slower and slower: medians move, their ratio does not."""
    clock = FakeClock()

    class Slowing(TimedCall):
        def __call__(self, image: object) -> None:
            self.clock.sleep(next(self._durations) * (1 + self.clock.now / 200))

    calls = {name: Slowing(name, clock, [seconds]) for name, seconds in (("a", 0.1), ("b", 0.05))}
    series = measure(calls, IMAGES, Stop(300, 1e6), clock=clock).series
    a, b = series["a"].latencies_ms, series["b"].latencies_ms
    assert a[-1] > 1.2 * a[0]
    assert np.median(b) / np.median(a) == pytest.approx(0.5, abs=0.001)


def test_stages_are_kept_apart() -> None:
    clock = FakeClock()

    def call(_image: str) -> dict[str, float]:
        clock.sleep(0.01)
        return {"copy in": 1.0, "engine": 8.0}

    series = measure({"a": call}, IMAGES, Stop(3, 1000), clock=clock).series["a"]
    assert series.stages_ms == {"copy in": [1.0] * 3, "engine": [8.0] * 3}


@pytest.mark.parametrize("at", [1, 25, 28])
def test_an_interruption_leaves_whole_rounds(at: int) -> None:
    clock, count = FakeClock(), 0

    def call(_image: str) -> None:
        nonlocal count
        count += 1
        clock.sleep(0.01)
        if count == at:
            raise KeyboardInterrupt

    measured = measure({"a": call, "b": call}, IMAGES, Stop(50, 1000), clock=clock)
    assert measured.interrupted
    lengths = {len(values) for s in measured.series.values() for values in (s.latencies_s, s.started_s)}
    assert lengths == {measured.rounds}
    assert measured.rounds == max(0, (at - 1 - 2 * (1 + 2 * WINDOW)) // 2)
