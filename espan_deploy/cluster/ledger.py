"""Who has which files, and what becomes of those whose worker died. Pure bookkeeping: no clocks, no cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from espan_deploy.errors import EspanDeployError
from espan_deploy.pipeline.choice import LOSSLESS_ENDINGS
from espan_deploy.pipeline.names import NamedFile
from espan_deploy.stores import Entry

MAX_DEATHS = 4
"""Of workers that had a file: the first among all they had, the second among what the first had, two with it alone."""

LEAST_PIXELS = 1 << 13
"""Of a file, as work: the smallest of them take time too."""


class Estimate:
    """Pixels of a file, by its bytes and its ending, as learnt from files that are done.

    A header would say more: it costs a request for each file, or 27 us and more in a folder, where a size costs 2. On
    a mixture of JPEG and PNG, chunks of 32 files packed so differ in pixels by 9 % (by count 16 %, by bytes alone
    27 %; by headers 2 %): `benchmarks/cluster.py packing`.
    """

    FIRST = 1 << 20
    """Bytes of an ending whose files count for more than what is supposed at first."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}

    def __call__(self, name: str, size: int) -> int:
        """For a file of so many bytes."""
        pixels, read = self._of(name)
        return size * pixels // read

    def learn(self, name: str, size: int, pixels: int) -> None:
        """A file of so many bytes had so many pixels."""
        all_pixels, read = self._of(name)
        self._seen[_ending(name)] = all_pixels + pixels, read + size

    def _of(self, name: str) -> tuple[int, int]:
        ending = _ending(name)
        return self._seen.get(ending, (self.FIRST * (1 if ending in LOSSLESS_ENDINGS else 8), self.FIRST))


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


@dataclass(frozen=True)
class Suspects:
    """Files whose workers died. deaths: how many. nodes: where."""

    files: tuple[NamedFile, ...]
    deaths: int
    nodes: frozenset[str]


@dataclass
class _Hand:
    """What one worker has: files without an outcome, by number. reserved: what it gets once it has nothing."""

    files: dict[int, NamedFile] = field(default_factory=dict)
    suspects: Suspects | None = None
    reserved: Suspects | None = None


class Ledger:
    """Hands out files as workers ask, from a listing that is read no further than that.

    files: as listed. size: a file's bytes. Work is counted in pixels, as estimated.
    A dead worker's files are retried together elsewhere; if that worker dies too, each alone; and a file whose worker
    died MAX_DEATHS times is given up. So one that kills whatever touches it costs itself, and nothing else.
    """

    def __init__(self, files: Iterator[NamedFile], size: Callable[[Entry], int]) -> None:
        self._files, self._size = files, size
        self._estimate = Estimate()
        self._hands: dict[str, _Hand] = {}
        self._waiting: deque[Suspects] = deque()
        self._broken: EspanDeployError | None = None
        self.listed = False
        """Whether the listing has ended."""

    @property
    def done(self) -> bool:
        """Whether every file has an outcome."""
        return self.listed and not self._waiting and not any(h.files or h.reserved for h in self._hands.values())

    @property
    def spent(self) -> bool:
        """Whether there is nothing left to hand out."""
        return self.listed and not self._waiting

    def holds(self, worker: str) -> int:
        """How many files a worker has."""
        return len(self._hands[worker].files) if worker in self._hands else 0

    def take(self, worker: str, node: str, nodes: Collection[str], pixels: int) -> tuple[NamedFile, ...]:
        """What a worker gets next, of about so many pixels; nothing where there is nothing, or it has to finish first.

        node: the worker's. nodes: of all workers: suspects go elsewhere while there is an elsewhere.
        Raises EspanDeployError where listing fails.
        """
        hand = self._hands.setdefault(worker, _Hand())
        if hand.suspects is not None and hand.files:
            return ()
        hand.suspects = None
        if hand.reserved is None:
            hand.reserved = self._next_suspects(node, nodes)
        if hand.reserved is not None:
            if hand.files:
                return ()
            hand.suspects, hand.reserved = hand.reserved, None
            found = hand.suspects.files
        else:
            found = tuple(self._fresh(pixels))
        hand.files.update((file.number, file) for file in found)
        return found

    def _next_suspects(self, node: str, nodes: Collection[str]) -> Suspects | None:
        for index, suspects in enumerate(self._waiting):
            if node not in suspects.nodes or suspects.nodes.issuperset(nodes):
                del self._waiting[index]
                return suspects
        return None

    def _fresh(self, pixels: int) -> list[NamedFile]:
        found: list[NamedFile] = []
        while pixels > 0 and not self.listed:
            try:
                file = next(self._files, None) if self._broken is None else None
            except EspanDeployError as exc:
                self._broken = exc
            if self._broken is not None:
                if found:
                    break  # these first
                raise self._broken
            if file is None:
                self.listed = True
                break
            pixels -= self.pixels(file)
            found.append(file)
        return found

    def pixels(self, file: NamedFile) -> int:
        """How much work it is."""
        return max(LEAST_PIXELS, self._estimate(file.entry.name, self._size(file.entry)))

    def end_listing(self) -> None:
        """Hand out nothing more from the listing."""
        self.listed = True

    def ended(self, worker: str, number: int, pixels: int = 0) -> NamedFile | None:
        """A file has its outcome; None where the worker does not have it any more. pixels: 0 where nobody looked."""
        file = self._hands[worker].files.pop(number, None) if worker in self._hands else None
        if file is not None and pixels:
            self._estimate.learn(file.entry.name, self._size(file.entry), pixels)
        return file

    def returned(self, worker: str) -> list[NamedFile]:
        """What a worker has not begun and does not have any more, when a run is stopped."""
        hand = self._hands.pop(worker, _Hand())
        return [*hand.files.values(), *(hand.reserved.files if hand.reserved else ())]

    def abandoned(self) -> list[NamedFile]:
        """What waited for a second chance, when a run is stopped."""
        waiting, self._waiting = self._waiting, deque()
        return [file for suspects in waiting for file in suspects.files]

    def died(self, worker: str, node: str) -> list[NamedFile]:
        """A worker's process has ended. The files that are given up for it."""
        hand = self._hands.pop(worker, None)
        if hand is None:
            return []
        if hand.reserved is not None:
            self._waiting.appendleft(hand.reserved)
        files = tuple(hand.files.values())
        if not files:
            return []
        earlier = hand.suspects or Suspects((), 0, frozenset())
        deaths, nodes = earlier.deaths + 1, earlier.nodes | {node}
        if deaths >= MAX_DEATHS:
            return list(files)
        groups = (files,) if deaths == 1 else tuple((file,) for file in files)
        self._waiting.extend(Suspects(group, deaths, nodes) for group in groups)
        return []
