"""Frames that come back from the stages in any order, put in order again, and never too many of them."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818  # no error: the other side has ended, and whoever waits is told
    """The reel was cut while somebody waited."""


class Reel(Generic[T]):
    """Items by number, from 0; put in any order by any thread, taken in order by one.

    room: how far ahead of the taker an item may be. ``close`` says how many there will be, ``cut`` ends it at once.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._items: dict[int, T] = {}
        self._next = 0
        self._count: int | None = None
        self._cut = False
        self._changed = threading.Condition()

    def wait_for_room(self, number: int) -> None:
        """Wait until this item may be made. Raises Stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._cut or number < self._next + self._room)
            if self._cut:
                raise Stopped

    def put(self, number: int, item: T) -> None:
        """An item; dropped where the reel was cut."""
        with self._changed:
            if not self._cut:
                self._items[number] = item
                self._changed.notify_all()

    def close(self, count: int) -> None:
        """There are so many items, and no more will be made."""
        with self._changed:
            self._count = count
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether it is known how many items there are."""
        with self._changed:
            return self._count is not None

    def take(self) -> T | None:
        """The next item, when it is there; None after the last. Raises Stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._cut or self._next in self._items or self._count == self._next)
            if self._cut:
                raise Stopped
            if self._next not in self._items:
                return None
            item = self._items.pop(self._next)
            self._next += 1
            self._changed.notify_all()
            return item

    def cut(self) -> None:
        """Everybody who waits is told to stop, and so is everybody who comes."""
        with self._changed:
            self._cut = True
            self._items.clear()
            self._changed.notify_all()
