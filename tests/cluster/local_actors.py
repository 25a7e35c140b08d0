"""A cluster in this process: real workers, each with a thread for its calls, that die when they are told to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from espan_deploy.cluster.foreman import Answer, DiedError
from espan_deploy.cluster.worker import Orders, Worker
from espan_deploy.errors import EspanDeployError

Fate = Callable[[str, str, tuple[Any, ...]], str]
"""Of a call, by worker, method and arguments: why the worker dies of it, or ""."""


class LocalActors:
    """places: how many workers are wanted on which node. A dead worker's stages go on, as on a machine cut off."""

    def __init__(self, orders: Orders, places: dict[str, int], fate: Fate = lambda *_: "") -> None:
        self.orders, self.places, self.fate = orders, places, fate
        self.workers: dict[str, Worker] = {}
        self.all: list[Worker] = []
        self.nodes: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._failed: dict[str, EspanDeployError] = {}

    def wanted(self) -> dict[str, int]:
        return self.places

    def start(self, worker: str, node: str) -> None:
        self.nodes[worker] = node
        try:
            self.workers[worker] = Worker(self.orders, worker)
            self.all.append(self.workers[worker])
        except EspanDeployError as exc:
            self._failed[worker] = exc

    def call(self, worker: str, method: str, *arguments: object) -> None:
        self.calls.append((worker, method))
        threading.Thread(target=self._do, args=(worker, method, arguments), daemon=True).start()

    def _do(self, worker: str, method: str, arguments: tuple[Any, ...]) -> None:
        if worker in self._failed:
            self._answers.put(Answer(worker, failure=self._failed[worker]))
            return
        actor, reason = self.workers[worker], self.fate(worker, method, arguments)
        if reason and method != "turn":
            self._answers.put(Answer(worker, failure=DiedError(reason)))
            return
        try:
            value = getattr(actor, method)(*arguments)
        except EspanDeployError as exc:
            self._answers.put(Answer(worker, failure=exc))
            return
        if method == "hello":
            value = replace(value, node=self.nodes[worker])
        self._answers.put(Answer(worker, failure=DiedError(reason)) if reason else Answer(worker, value))

    def answers(self, seconds: float) -> list[Answer]:
        try:
            found = [self._answers.get(timeout=seconds)]
        except queue.Empty:
            return []
        while not self._answers.empty():
            found.append(self._answers.get())
        return found

    def end(self, worker: str) -> None:
        self.workers.pop(worker, None)


@contextmanager
def given(actors: LocalActors) -> Iterator[LocalActors]:
    try:
        yield actors
    finally:
        for worker in actors.all:
            worker.close()
