"""What the driver does next: it staffs the cluster, hands out files, hears of outcomes and of deaths."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from espan_deploy.cluster.ledger import MAX_DEATHS, Ledger
from espan_deploy.cluster.report import WorkerReport
from espan_deploy.cluster.worker import Hello, Opened, Turn
from espan_deploy.errors import BackendUnavailableError, EspanDeployError
from espan_deploy.files import display
from espan_deploy.pipeline.names import NamedFile
from espan_deploy.pipeline.report import FileReport
from espan_deploy.timing import Clock

POLL_SECONDS = 0.1

TURN_SECONDS = 1.0
"""Of work that is handed out at once, and after which a worker tells what it has done: one question a second costs
nothing, and this is what the last worker may keep the others waiting for."""

FIRST_PIXELS = 1 << 20
"""Handed to a worker whose pace is not known."""

STAFF_SECONDS = 2.0
"""Between two looks at who is there."""

GOODBYE_SECONDS = 10.0
"""For workers to close what they have open, before they are ended all the same."""

PATIENCE_SECONDS = 60.0
"""Without any worker, after which it is said."""

MAX_STILLBORN = 5
"""Workers in a row that end before their engine is open, after which it will not be otherwise."""


class DiedError(Exception):
    """A worker's process has ended. The message says what is known of it."""


@dataclass(frozen=True)
class Answer:
    """Of a worker: what a call returned, or why it did not: an EspanDeployError, or a DiedError."""

    worker: str
    value: Any = None
    failure: EspanDeployError | DiedError | None = None


class Actors(Protocol):
    """Processes somewhere, by name, each with one call under way at most."""

    def wanted(self) -> dict[str, int]:
        """How many there should be now: by the node where they must be, or under "" for wherever there is room."""
        ...

    def start(self, worker: str, node: str) -> None:
        """Begin one; it may wait for room."""
        ...

    def call(self, worker: str, method: str, *arguments: object) -> None:
        """Ask something of it."""
        ...

    def answers(self, seconds: float) -> list[Answer]:
        """Those that are there, or come within so long; several at once where there are several."""
        ...

    def end(self, worker: str) -> None:
        """Kill it, or withdraw it before it began. Does no harm twice."""
        ...


@dataclass
class _Member:
    """A worker. place: where it was asked for. state: of its last call. busy: whether a call is under way."""

    name: str
    place: str
    state: str = "starting"
    busy: bool = True
    hello: Hello | None = None
    report: WorkerReport = field(default_factory=WorkerReport)
    started: float = 0.0
    pixels_done: int = 0


class Foreman:
    """Works through a ledger with actors. ``execute`` returns when every file has its outcome, or nothing more is done.

    on_row: takes a file's outcome. on_open: takes the first engine that is open. clock: seconds that only grow.
    """

    def __init__(
        self,
        ledger: Ledger,
        actors: Actors,
        name: str,
        *,
        on_row: Callable[[int, FileReport], None],
        on_open: Callable[[Opened], None],
        clock: Clock = time.perf_counter,
    ) -> None:
        self.ledger, self.actors, self.name = ledger, actors, name
        self._on_row, self._on_open, self._clock = on_row, on_open, clock
        self.members: dict[str, _Member] = {}
        self.left: list[WorkerReport] = []
        self.refused: dict[str, EspanDeployError] = {}
        self.stopped_because = ""
        self.remark = ""
        self.deaths = 0
        self._opened: Opened | None = None
        self._deciding = ""
        self._stopping = False
        self._stillborn = 0
        self._count = 0
        self._staffed = float("-inf")
        self._began = clock()
        self._idle_since: float | None = None

    def stop(self) -> None:
        """Let workers finish what they have begun. Safe in a signal handler."""
        self._stopping = True

    @property
    def reports(self) -> list[WorkerReport]:
        """Of every worker that ever was."""
        return [*self.left, *(member.report for member in self.members.values())]

    @property
    def tail_seconds(self) -> float:
        """From when the first worker had nothing left to do until now."""
        return 0.0 if self._idle_since is None else self._clock() - self._idle_since

    @property
    def nodes(self) -> set[str]:
        """Of the workers that work."""
        return {m.hello.node for m in self.members.values() if m.hello is not None and m.state == "working"}

    @property
    def at_work(self) -> int:
        """How many work."""
        return sum(1 for member in self.members.values() if member.state == "working")

    @property
    def waiting_for_room(self) -> int:
        """How many wait for room, where it is time to say so: none has ever begun."""
        waiting = sum(1 for member in self.members.values() if member.state == "starting")
        late = self._clock() - self._began > PATIENCE_SECONDS
        return waiting if late and self._opened is None and waiting == len(self.members) else 0

    def execute(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Do it. Raises why no worker could begin."""
        try:
            while not self._is_over():
                self._staff()
                for member in list(self.members.values()):
                    if not member.busy:
                        self._instruct(member)
                for answer in self.actors.answers(POLL_SECONDS):
                    self._hear(answer)
                on_progress()
        finally:
            self._dismiss()

    def _is_over(self) -> bool:
        if not self._stopping:
            return self.ledger.done
        return not any(member.state == "working" for member in self.members.values())

    # Staff

    def _staff(self) -> None:
        """Start who is missing, withdraw who is not needed any more."""
        if self._stopping or self.ledger.spent:
            for member in [m for m in self.members.values() if m.state == "starting"]:
                if self.ledger.spent and not self._stopping and not self.nodes:
                    break  # whoever is left is needed for what is left
                self._leave(member)
            if self._stopping or self.nodes:
                return
        now = self._clock()
        if now - self._staffed < STAFF_SECONDS:
            return
        self._staffed = now
        wanted = self.actors.wanted()
        missing = sum(wanted.values()) - len(self.members) - len(self.refused)
        for place, count in wanted.items():
            there = sum(1 for member in self.members.values() if member.place == place)
            refused = sum(1 for name in self.refused if name.partition("@")[2] == place)
            for _ in range(min(missing, count - there - refused)):
                self._start(place)
                missing -= 1
        if not self.members and self.refused:
            raise next(iter(self.refused.values()))

    def _start(self, place: str) -> None:
        self._count += 1
        name = f"{self.name}-{self._count}"
        member = self.members[name] = _Member(name, place)
        member.report.name = f"worker {self._count}"
        self.actors.start(name, place)
        self.actors.call(name, "hello")

    def _leave(self, member: _Member) -> None:
        del self.members[member.name]
        if member.report.files or member.report.died:
            self.left.append(member.report)
        self.actors.end(member.name)

    def _dismiss(self) -> None:
        """Let everybody close what they have open, briefly, and end them."""
        open_ones = {m.name: m for m in self.members.values() if m.state in ("opening", "working", "ended")}
        end = self._clock() + GOODBYE_SECONDS
        while open_ones and self._clock() < end:
            for member in open_ones.values():
                if not member.busy:
                    self._ask(member, "closing", "close")
            for answer in self.actors.answers(POLL_SECONDS):
                if answer.worker in open_ones:
                    open_ones[answer.worker].busy = False
                    if answer.failure is not None or open_ones[answer.worker].state == "closing":
                        del open_ones[answer.worker]
        for member in self.members.values():
            self.actors.end(member.name)

    # Work

    def _instruct(self, member: _Member) -> None:
        if member.state == "ready":
            if self._opened is not None or not self._deciding:
                self._deciding = self._deciding or member.name
                self._ask(member, "opening", "open", None if self._opened is None else self._opened.decided)
        elif member.state == "working" and self._stopping:
            self._ask(member, "working", "turn", (), TURN_SECONDS, True)
        elif member.state == "working":
            files = self._next_files(member)
            if files or self.ledger.holds(member.name):
                self._ask(member, "working", "turn", files, TURN_SECONDS)
            elif self._idle_since is None and self.ledger.spent:
                self._idle_since = self._clock()

    def _ask(self, member: _Member, state: str, method: str, *arguments: object) -> None:
        member.state, member.busy = state, True
        self.actors.call(member.name, method, *arguments)

    def _next_files(self, member: _Member) -> tuple[NamedFile, ...]:
        assert member.hello is not None
        seconds = self._clock() - member.started
        pace = member.pixels_done / seconds if seconds > 0 else 0.0
        pixels = round(pace * TURN_SECONDS) or FIRST_PIXELS
        try:
            files = self.ledger.take(member.name, member.hello.node, self.nodes, pixels)
        except EspanDeployError as exc:  # the listing broke off: what is under way is finished
            self.stopped_because = exc.message
            self.ledger.end_listing()
            return ()
        if files and not member.started:
            member.started = self._clock()
        return files

    # Answers

    def _hear(self, answer: Answer) -> None:
        member = self.members.get(answer.worker)
        if member is None:
            return
        member.busy = False
        if isinstance(answer.failure, DiedError):
            self._bury(member, str(answer.failure))
        elif answer.failure is not None:
            self._refuse(member, answer.failure)
        elif isinstance(answer.value, Hello):
            member.hello, member.state = answer.value, "ready"
            member.report.machine, member.report.node = answer.value.machine, answer.value.node
        elif isinstance(answer.value, Opened):
            self._take_on(member, answer.value)
        elif isinstance(answer.value, Turn):
            self._take_rows(member, answer.value)

    def _take_on(self, member: _Member, opened: Opened) -> None:
        if self._opened is None:
            self._opened = opened
            self._on_open(opened)
        elif opened.settings_sha256 != self._opened.settings_sha256:
            self._refuse(member, BackendUnavailableError("its results would be others than those of the first worker"))
            return
        self._stillborn = 0
        member.state = "working"

    def _take_rows(self, member: _Member, turn: Turn) -> None:
        now = self._clock()
        for number, row in turn.rows:
            file = self.ledger.ended(member.name, number, row.pixels)
            if file is None:
                continue
            member.pixels_done += self.ledger.pixels(file)
            member.report.add(row, now - member.started)
            self._on_row(number, row)
        self.remark = self.remark or turn.remark
        if turn.stopped_because:
            self.stopped_because = self.stopped_because or turn.stopped_because
            self._stopping = True
        if turn.ended:
            self._end_stopped(member)

    def _end_stopped(self, member: _Member) -> None:
        """Its stages have ended: what it still has was not begun."""
        self._give_back(self.ledger.returned(member.name))
        member.state = "ended"

    def _give_back(self, files: list[NamedFile]) -> None:
        for file in files:
            self._on_row(file.number, row_of(file))

    def _refuse(self, member: _Member, failure: EspanDeployError) -> None:
        """It cannot take part, and another in its place could not either."""
        self.refused[f"{member.name}@{member.place}"] = failure
        if self._deciding == member.name and self._opened is None:
            self._deciding = ""
        self._leave(member)

    def _bury(self, member: _Member, reason: str) -> None:
        self.deaths += 1
        member.report.died = reason
        opened = member.state == "working"
        if self._deciding == member.name and self._opened is None:
            self._deciding = ""
        node = member.hello.node if member.hello is not None else ""
        if self._stopping:
            self._give_back(self.ledger.returned(member.name))
        for file in self.ledger.died(member.name, node):
            row = row_of(file)
            row.status, row.error = "failed", f"{MAX_DEATHS} workers ended while they had it: {reason}"
            row.hint = "upscale it alone, without a cluster, to see why"
            self._on_row(file.number, row)
        self._leave(member)
        self._staffed = float("-inf")
        if not opened:
            self._stillborn += 1
            if self._stillborn >= MAX_STILLBORN and not self.nodes:
                raise BackendUnavailableError(
                    f"{MAX_STILLBORN} workers in a row ended before they could begin: {reason}",
                    hint="look into the cluster's logs",
                )


def row_of(file: NamedFile) -> FileReport:
    """Of a file that nobody has begun."""
    return FileReport(display(file.entry.name), display(file.output), "not started")
