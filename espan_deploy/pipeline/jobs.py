"""What the stages are given and what they give back: an input, which is or becomes a picture, and an output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from espan_deploy.pipeline.infer import Lane
from espan_deploy.pipeline.picture import Picture, Pixels


class Input(Protocol):
    """A picture to be upscaled: a file, a request's body, a frame that is decoded already.

    Used once, by one thread, which may call the methods in this order and leave out the first. All raise InputError
    or OSError where there is no picture.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def sha256(self) -> str:
        """Of what it is made of: equal contents, equal digests."""
        ...

    def size(self) -> tuple[int, int]:
        """Height and width as displayed, without decoding."""
        ...

    def picture(self) -> Picture:
        """Decoded. The input keeps nothing of it."""
        ...


class Sink(Protocol):
    """Takes the bands of one result, top to bottom.

    ``prepare`` may run for several bands at once; ``commit`` takes the parts it made, one by one and in order;
    ``finish`` follows the last.
    """

    def prepare(self, color: Pixels, alpha: Pixels | None) -> Iterable[Any]:
        """One band in parts, which may be made as they are asked for.

        color: (h, w, 3), as the network gave it: uint8, or float32 where the picture's depth is 16. alpha: (h, w) of
        the same type. Neither belongs to the sink once its parts are committed.
        """
        ...

    def commit(self, part: Any) -> None:
        """Take the next part."""
        ...

    def finish(self) -> None:
        """Write what is left."""
        ...


class Output(Protocol):
    """Where one result goes: a file of a destination, a caller who waits for pixels, a frame's place in a film.

    After ``open``, either ``publish`` follows, or ``discard``, or both where publishing fails. Its methods are never
    called at once, but from different threads. All but ``discard`` raise EspanDeployError or OSError.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def is_done(self, source: Input) -> bool:
        """Whether the result is there, made of this input. Raises InputError where something else has its place."""
        ...

    def held_bytes(self, height: int, width: int) -> int:
        """Memory that a result of this size takes until its last band; 0 where bands leave as they come.

        Raises InputError where the output cannot hold such a result.
        """
        ...

    def open(self, picture: Picture, scale: int) -> Sink:
        """Begin."""
        ...

    def settle(self) -> None:
        """A moment between bands, to move on what was written so far."""
        ...

    def publish(self) -> int:
        """The sink has finished: deliver. The result's size in bytes."""
        ...

    def discard(self) -> None:
        """Undo what ``open`` began. Does no harm twice."""
        ...


@dataclass(frozen=True)
class Taken:
    """The model taken for a picture, by name, and why; lanes: one for each of the run's inference threads."""

    model: str
    because: str
    lanes: Sequence[Lane]


@dataclass(frozen=True)
class Job:
    """One picture to upscale; number: its place among the others, from 1.

    model: asked, before anything else, for the model that does it, where a run has several; None for the run's own.
    """

    number: int
    input: Input
    output: Output
    model: Callable[[], Taken] | None = None
