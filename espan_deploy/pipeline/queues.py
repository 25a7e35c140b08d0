"""Bounded queues between stages, and a budget of bytes in flight."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Aborted(Exception):  # noqa: N818  # not an error: the run is over, and threads are told
    """The run was aborted while waiting."""


class Channel(Generic[T]):
    """A bounded queue whose taker may choose among what waits.

    It holds ``least`` items of any weight, and more while they weigh at most ``capacity`` together.

    Waking a thread is a system call under the interpreter's lock, and who is woken for nothing wants that lock next: an
    item wakes one taker, and room only those who wait for room.
    """

    def __init__(self, least: int, capacity: int = 0, weigh: Callable[[T], int] = lambda _: 1) -> None:
        self._least, self._capacity, self._weigh = least, capacity, weigh
        self._weight = 0
        self._items: list[T] = []
        self._arrived: list[float] = []
        self._closed = self._aborted = False
        lock = threading.Lock()
        self._filled, self._emptied = threading.Condition(lock), threading.Condition(lock)

    def put(self, item: T) -> None:
        """Wait for room and append. Raises Aborted."""
        with self._emptied:
            weight = self._weigh(item)
            while not (self._aborted or len(self._items) < self._least or self._weight + weight <= self._capacity):
                self._emptied.wait()
            if self._aborted:
                raise Aborted
            self._items.append(item)
            self._arrived.append(time.monotonic())
            self._weight += weight
            self._filled.notify()

    def take(self, pick: Callable[[list[T], list[float]], list[int] | float] | None = None) -> list[T]:
        """Wait for items and remove those picked by index (the first by default); [] once closed and empty.

        pick: gets the items and for how many seconds each has waited (for ever, once no more will come), and may ask
        for seconds to wait instead. Raises Aborted.
        """
        with self._filled:
            while True:
                while not (self._items or self._closed or self._aborted):
                    self._filled.wait()
                if self._aborted:
                    raise Aborted
                if not self._items:
                    return []
                picked = pick(self._items, self._ages()) if pick else [0]
                if not isinstance(picked, float):
                    break
                self._filled.wait(picked)
            taken = [self._items[index] for index in picked]
            for index in sorted(picked, reverse=True):
                self._weight -= self._weigh(self._items.pop(index))
                del self._arrived[index]
            self._emptied.notify_all()
            return taken

    def _ages(self) -> list[float]:
        now = time.monotonic()
        return [math.inf if self._closed else now - arrived for arrived in self._arrived]

    def close(self) -> None:
        """No more will be put."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()

    def abort(self) -> None:
        """Let every waiting thread raise Aborted."""
        with self._filled:
            self._aborted = True
            self._items.clear()
            self._arrived.clear()
            self._filled.notify_all()
            self._emptied.notify_all()


class Budget:
    """Bytes that may be in flight; what is larger than all of it goes alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._aborted = False
        self._changed = threading.Condition()

    def acquire(self, amount: int) -> int:
        """Wait until the amount is free; returns what to release. Raises Aborted."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + amount <= self._total or self._aborted)
            if self._aborted:
                raise Aborted
            self._used += amount
        return amount

    def release(self, amount: int) -> None:
        """Give back."""
        with self._changed:
            self._used -= amount
            self._changed.notify_all()

    def abort(self) -> None:
        """Let every waiting thread raise Aborted."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
