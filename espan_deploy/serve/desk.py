"""Requests on their way: a bounded queue into the stages, and results that somebody may no longer want."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from espan_deploy.errors import EspanDeployError, InputError
from espan_deploy.pipeline.decode import read_size
from espan_deploy.pipeline.encode import FORMATS, EncodeSettings, Format
from espan_deploy.pipeline.encoded import FileInput, FileOutput, FileSettings
from espan_deploy.pipeline.jobs import Job, Taken
from espan_deploy.pipeline.names import SAME_FORMAT
from espan_deploy.pipeline.report import FileReport
from espan_deploy.stores import Entry
from espan_deploy.stores.memory import Memory

PICTURE = "picture"
"""The name of a request's input, and of its result."""

PILLOW_FORMATS = {"MPO": "jpeg", "GIF": "png", "HEIF": "jpeg"} | {name.upper(): name for name in FORMATS}
"""What a picture is written as by itself, by Pillow's name of what it was."""


class BusyError(EspanDeployError):
    """The queue is full, or the service is stopping. retry_seconds: when to come again."""

    def __init__(self, message: str, *, retry_seconds: int) -> None:
        super().__init__(message, hint=f"come again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


class TooLateError(EspanDeployError):
    """The deadline passed before the work began."""


class TooLargeError(InputError):
    """More bytes or pixels than are taken."""


class Withdrawn(EspanDeployError):  # noqa: N818  # no error: nobody waits any more
    """Whoever asked has gone."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. pixels: of the picture sent. waiting: requests in the queue, those at work aside.

    deadline_seconds: from the whole request's arrival to its answer. body_seconds: for sending the picture.
    """

    bytes: int = 64 << 20
    pixels: int = 40_000_000
    waiting: int = 64
    deadline_seconds: float = 120.0
    body_seconds: float = 60.0


@dataclass(frozen=True)
class Result:
    """An encoded picture, and what its row says."""

    data: bytes
    format: Format
    report: FileReport


@dataclass(eq=False)
class Ticket:
    """One request. expires: by the desk's clock. future: its result, or what made it fail. model: as of a job."""

    data: bytes
    format: Format
    encode: EncodeSettings
    expires: float
    model: Callable[[], Taken] | None = None
    future: Future[Result] = field(default_factory=Future)
    withdrawn: bool = False

    def job(self, number: int) -> Job:
        """For the stages."""
        return Job(number, TicketInput(self), TicketOutput(self), self.model)


class TicketInput(FileInput):
    """The picture sent."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(Memory({PICTURE: ticket.data}), Entry(PICTURE, len(ticket.data)))
        self.ticket = ticket

    def size(self) -> tuple[int, int]:
        """From its header. Raises Withdrawn where nobody waits."""
        if self.ticket.withdrawn:
            raise Withdrawn("nobody waits for it")
        return super().size()


class TicketOutput(FileOutput):
    """The answer; what nobody waits for is given up between two bands."""

    def __init__(self, ticket: Ticket) -> None:
        self.store = Memory()
        super().__init__(self.store, PICTURE, ticket.format, FileSettings("", ticket.encode, overwrite=True))
        self.ticket = ticket

    def settle(self) -> None:
        """Raises Withdrawn where nobody waits."""
        if self.ticket.withdrawn:
            raise Withdrawn("nobody waits for it")
        super().settle()

    def data(self) -> bytes:
        """The published file."""
        return self.store.read(Entry(PICTURE))


class Desk:
    """Takes tickets from any thread, and gives them to the stages one after another as they ask; an endless iterator.

    Too old or withdrawn tickets never reach the stages. clock: seconds that only grow.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits, self.clock = limits, clock
        self._waiting: deque[Ticket] = deque()
        self._at_work: set[Ticket] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._mean_seconds = 0.0

    @property
    def waiting(self) -> int:
        """Tickets in the queue."""
        return len(self._waiting)

    def ticket(self, data: bytes, *, format_name: str | None, quality: int | None = None) -> Ticket:
        """A ticket for a picture; format_name: a key of FORMATS, None for the picture's own.

        Raises InputError where it is none, TooLargeError where it is too large.
        """
        height, width, found = read_size(data)
        if height * width > self.limits.pixels:
            raise TooLargeError(
                f"{width}x{height} is {height * width:,} pixels, and at most {self.limits.pixels:,} are taken"
            )
        chosen = FORMATS[format_name or PILLOW_FORMATS[found]]
        return Ticket(data, chosen, EncodeSettings(quality), self.clock() + self.limits.deadline_seconds)

    def put(self, ticket: Ticket) -> None:
        """Queue it. Raises BusyError where there is no room, or nothing is taken any more."""
        with self._changed:
            if self._closed:
                raise BusyError("the service is stopping", retry_seconds=10)
            if len(self._waiting) >= self.limits.waiting:
                seconds = max(1, round(self._mean_seconds * len(self._waiting)))
                raise BusyError(f"{len(self._waiting)} requests are waiting already", retry_seconds=seconds)
            self._waiting.append(ticket)
            self._changed.notify()

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closed

    def abandon(self, failure: BaseException) -> None:
        """The stages have ended unasked: nobody will do what waits or was at work."""
        self.close()
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
            at_work, self._at_work = self._at_work, set()
        for ticket in at_work:
            ticket.future.set_exception(failure)
        for ticket in waiting:
            if ticket.future.set_running_or_notify_cancel():
                ticket.future.set_exception(failure)

    def close(self) -> None:
        """Take no more; what waits is still done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def jobs(self) -> Iterator[Job]:
        """As the stages ask for them, until the desk is closed and empty."""
        number = 0
        while (ticket := self._next()) is not None:
            # From here on it cannot be cancelled: the stages will answer it.
            if ticket.withdrawn or not ticket.future.set_running_or_notify_cancel():
                continue
            if self.clock() >= ticket.expires:
                ticket.future.set_exception(
                    TooLateError("the deadline passed while the request waited", hint="send fewer at a time")
                )
            else:
                number += 1
                with self._changed:
                    self._at_work.add(ticket)
                yield ticket.job(number)

    def _next(self) -> Ticket | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else None

    def ended(self, job: Job, report: FileReport, failure: BaseException | None) -> None:
        """Take a job's outcome, and answer. From any thread."""
        output = job.output
        assert isinstance(output, TicketOutput)
        ticket = output.ticket
        if failure is not None:
            self._answer(ticket, failure)
            return
        # Requests at work at once make this longer than one takes: so much the better for those who come again.
        seconds = report.stage_ms.get("end_to_end", 0.0) / 1e3
        self._mean_seconds += (seconds - self._mean_seconds) / 16
        self._answer(ticket, Result(output.data(), ticket.format, report))

    def _answer(self, ticket: Ticket, outcome: Result | BaseException) -> None:
        with self._changed:
            self._at_work.discard(ticket)
        if isinstance(outcome, Result):
            ticket.future.set_result(outcome)
        else:
            ticket.future.set_exception(outcome)


def format_named(name: str) -> str:
    """The key of FORMATS for a format's name or a file's ending. Raises InputError where there is none."""
    key = SAME_FORMAT.get(f".{name.lower()}", name.lower())
    if key not in FORMATS:
        raise InputError(f"{name} is no format that is written", hint=f"there are {', '.join(sorted(FORMATS))}")
    return key
