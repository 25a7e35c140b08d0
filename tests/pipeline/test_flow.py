"""What lies between the stages: queues that wake only whom it concerns, and memory that grows with the cores."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from espan_deploy.pipeline import engine
from espan_deploy.pipeline.engine import EngineSettings
from espan_deploy.pipeline.queues import Aborted, Channel

SECONDS = 30.0
"""Longer than anything here takes; a test that hangs fails then."""

GIB = 1 << 30


def started(*work: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=one, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    return threads


def ended(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(SECONDS)
    return not any(thread.is_alive() for thread in threads)


class TestChannel:
    def test_every_item_is_taken_once_by_one_of_many(self) -> None:
        channel: Channel[int] = Channel(2)
        taken: list[int] = []

        def take() -> None:
            while items := channel.take():
                taken.extend(items)

        takers = started(*[take] * 5)
        putters = started(*(lambda k=k: [channel.put(3 * n + k) for n in range(100)] for k in range(3)))
        assert ended(putters)
        channel.close()
        assert ended(takers)
        assert sorted(taken) == list(range(300))

    def test_whoever_waits_for_room_gets_it_whatever_it_brings(self) -> None:
        channel: Channel[int] = Channel(1, 10, lambda weight: weight)
        channel.put(9)
        waiting = started(lambda: channel.put(8), lambda: channel.put(1))
        waiting[1].join(SECONDS)  # there is room for the light one only
        assert waiting[0].is_alive()
        assert channel.take() == [9]
        assert ended(waiting)
        assert sorted(channel.take() + channel.take()) == [1, 8]

    def test_a_taker_that_waits_for_company_sees_it_come(self) -> None:
        channel: Channel[int] = Channel(4)
        channel.put(1)
        taken: list[int] = []

        def pair(items: list[int], _: list[float]) -> list[int] | float:
            return [0, 1] if len(items) > 1 else SECONDS

        takers = started(lambda: taken.extend(channel.take(pair)))
        channel.put(2)
        assert ended(takers)
        assert taken == [1, 2]

    @pytest.mark.parametrize("full", [True, False])
    def test_an_abort_reaches_those_who_wait_for_either(self, full: bool) -> None:
        channel: Channel[int] = Channel(1)
        if full:
            channel.put(1)
        told: list[bool] = []

        def wait() -> None:
            try:
                channel.put(2) if full else channel.take()
            except Aborted:
                told.append(True)

        threads = started(wait, wait) if not full else started(wait)
        channel.abort()
        assert ended(threads)
        assert told == [True] * len(threads)


@pytest.mark.parametrize(
    ("cores", "machine", "expected"), [(2, 64 * GIB, 2 * GIB), (16, 64 * GIB, 8 * GIB), (64, 40 * GIB, 16 * GIB)]
)
def test_memory_in_flight_follows_the_cores_within_the_machines(
    monkeypatch: pytest.MonkeyPatch, cores: int, machine: int, expected: int
) -> None:
    monkeypatch.setattr(engine, "usable_cores", lambda: cores)
    monkeypatch.setattr(engine, "memory_bytes", lambda: machine)
    assert EngineSettings().memory_bytes == expected
    assert EngineSettings(threads=2).memory_bytes == 2 * GIB
    assert EngineSettings(memory=GIB).memory_bytes == GIB
