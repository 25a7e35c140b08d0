"""How long every candidate takes on this machine, and which of them that speaks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from espan_deploy.backends.base import Images
from espan_deploy.backends.candidates import PROBE_SIDE, Candidate, Opened, lane_counts
from espan_deploy.backends.precision import EXACT, MIN_PSNR_DB, Nearness, nearness
from espan_deploy.errors import BackendError
from espan_deploy.timing import Clock, Series, Stop, WarmUpLimits, take_turns, warm_up_call

TIE = 0.03
"""A later candidate must take so much less time than an earlier one to be preferred: noise must not decide."""

HOPELESS = 1.5
"""Times the fastest. What is slower after its warm-up takes no turns, unless it is the simplest, and its other splits
of the cores are not tried."""

TURNS_SHARE = 0.5
"""Of the time that is left, for turns: the rest is for the next split of the cores."""

LOADED_SECONDS = 1.0
"""Without the second candidate nothing would be found out, ever, of a network so small that its jobs are short."""

PIXELS_PER_CALL = PROBE_SIDE * PROBE_SIDE
"""Of a probe, whatever its size class."""

CALLS_ONLY_ONCE = WarmUpLimits(runs=0)
"""Every probe once: what is compiled then stays compiled."""


@dataclass(frozen=True)
class Row:
    """One candidate's result.

    ms: of one call's images, the median over its turns, or its last warm-up call where it was hopeless; None where it
    was not timed. turns: how often it was timed. excluded: why it cannot be chosen, or "".
    """

    engine: str
    lanes: int
    ms: float | None = None
    turns: int = 0
    nearness: Nearness | None = None
    excluded: str = ""

    @property
    def name(self) -> str:
        """As :attr:`Candidate.name`."""
        return f"{self.engine}, {self.lanes} at once"

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen."""
        return self.ms is not None and not self.excluded


@dataclass(frozen=True)
class Table:
    """What was measured. side: of the images. seconds: what it took. complete: whether everything had its turn."""

    rows: tuple[Row, ...]
    side: int
    seconds: float
    complete: bool

    def best(self) -> Row | None:
        """Of the fastest engine that may be chosen, or of an earlier one that is as fast within TIE, the fastest row.

        Of its splits of the cores that are as fast within TIE, the one with most images at once: more of what happens
        between engine calls overlaps with them.
        """
        timed = [(row, row.ms) for row in self.rows if row.eligible and row.ms is not None]
        if not timed:
            return None
        engine = _as_fast_as_the_least(timed)[0].engine
        splits = _as_fast_as_the_least([(row, ms) for row, ms in timed if row.engine == engine])
        return max(splits, key=lambda row: row.lanes)

    @property
    def compares(self) -> bool:
        """Whether it may become a verdict: two engines were timed, or all that there are had their turn."""
        return self.complete or len({row.engine for row in self.rows if row.ms is not None}) > 1

    def by_engine(self) -> dict[str, Row]:
        """The best row of each engine and precision, the excluded ones too."""
        found: dict[str, Row] = {}
        for row in self.rows:
            other = found.get(row.engine)
            if other is None or (row.ms is not None and (other.ms is None or row.ms < other.ms)):
                found[row.engine] = row
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [
            asdict(replace(row, nearness=None)) | {"psnr_db": row.nearness and dict(row.nearness.psnr_db)}
            for row in self.rows
        ]
        return {"side": self.side, "seconds": self.seconds, "complete": self.complete, "rows": rows}

    @classmethod
    def from_json(cls, document: Any) -> Table:
        """As kept. Raises KeyError, TypeError or ValueError for what is none."""
        rows = tuple(
            Row(
                str(row["engine"]),
                int(row["lanes"]),
                None if row["ms"] is None else float(row["ms"]),
                int(row["turns"]),
                None if row["psnr_db"] is None else Nearness.from_json(row["psnr_db"]),
                str(row["excluded"]),
            )
            for row in document["rows"]
        )
        return cls(rows, int(document["side"]), float(document["seconds"]), bool(document["complete"]))


def _as_fast_as_the_least(timed: Sequence[tuple[Row, float]]) -> list[Row]:
    least = min(ms for _, ms in timed)
    return [row for row, ms in timed if ms * (1 - TIE) <= least]


class Ranking:
    """Times candidates until ``deadline`` tells that the time is up.

    Wrong numbers disqualify before time counts: every candidate's first results are held against the first FP32
    engine's, a reduced precision's on every probe, another FP32 engine's on the photograph (on a page of text some
    networks amplify the order of additions without bound).
    """

    def __init__(
        self, probes: Sequence[Images], threads: int, *, clock: Clock, deadline: Callable[[float | None], float]
    ) -> None:
        """deadline: seconds since the start at which to end, for the fastest call's milliseconds an image so far.

        Another precision of the engine that is loaded already is tried in spite of it, within LOADED_SECONDS.
        """
        self._probes, self._threads, self._clock, self._deadline = list(probes), threads, clock, deadline
        self._begun = clock()
        self._opened: dict[str, Opened] = {}
        self._rows: dict[str, Row] = {}
        self._exact: list[Images | None] | None = None
        self._complete = True

    def measure(self, engines: Sequence[Candidate], most_lanes: int, *, everything: bool, turns: int) -> Table:
        """Time all engines with one lane, then with more lanes those not far behind. everything: leave none out."""
        try:
            for lanes in lane_counts(most_lanes):
                tried = [replace(each, lanes=lanes) for each in engines if everything or self._hopeful(each, lanes)]
                self._warm_up(tried)
                self._take_turns(tried, everything=everything, turns=turns)
        finally:
            for opened in self._opened.values():
                opened.close()
        side = int(self._probes[0].shape[1])
        return Table(tuple(self._rows.values()), side, self._clock() - self._begun, self._complete)

    @property
    def _left(self) -> float:
        return self._deadline(self._least()) - (self._clock() - self._begun)

    def _left_for(self, candidate: Candidate) -> float:
        loaded = {row.engine.split()[0] for row in self._rows.values() if row.eligible}
        if len(self._rows) == 1 and candidate.backend.name in loaded:
            return max(self._left, LOADED_SECONDS - (self._clock() - self._begun))
        return self._left

    def _least(self) -> float | None:
        return min((row.ms for row in self._rows.values() if row.eligible and row.ms is not None), default=None)

    def _hopeful(self, candidate: Candidate, lanes: int) -> bool:
        """Whether a split of the cores is worth trying: its engine is not far behind with one lane."""
        if lanes == 1:
            return True
        row, least = self._rows.get(replace(candidate, lanes=1).name), self._least()
        return row is not None and row.eligible and row.ms is not None and row.ms <= HOPELESS * (least or 0)

    def _warm_up(self, tried: Sequence[Candidate]) -> None:
        cost = 0.0
        for candidate in tried:
            if self._rows and self._left_for(candidate) < cost:
                self._rows[candidate.name] = Row(candidate.engine, candidate.lanes, excluded="there was no time for it")
                self._complete = False
                continue
            begun = self._clock()
            self._rows[candidate.name] = self._first(candidate)
            cost = self._clock() - begun

    def _first(self, candidate: Candidate) -> Row:
        try:
            opened = Opened(candidate, self._threads)
            self._opened[candidate.name] = opened
            warm_up = warm_up_call(opened.call, self._probes, CALLS_ONLY_ONCE, self._clock)
        except BackendError as exc:
            return Row(candidate.engine, candidate.lanes, excluded=exc.message)
        if self._exact is None and candidate.precision == EXACT:
            self._exact = opened.first_results
        near = None if self._exact is None else nearness(self._exact, opened.first_results)
        row = Row(candidate.engine, candidate.lanes, warm_up.last_ms / candidate.lanes, 0, near)
        return replace(row, excluded=_wrong(candidate, near))

    def _take_turns(self, tried: Sequence[Candidate], *, everything: bool, turns: int) -> None:
        """Those not far behind, beside the simplest: that one slow call of its was chance must come to light."""
        eligible = [each for each in tried if self._rows[each.name].eligible]
        limit = float("inf") if everything else HOPELESS * (self._least() or 0.0)
        calls: Mapping[str, Opened] = {
            each.name: self._opened[each.name]
            for each in eligible
            if each is eligible[0] or (self._rows[each.name].ms or 0.0) <= limit
        }
        if len(calls) < 2 and not everything:
            return
        stop = Stop(turns, max(0.0, self._left) * TURNS_SHARE / max(1, len(calls)))
        measured = take_turns(
            {name: opened.call for name, opened in calls.items()}, self._probes[:1], stop, clock=self._clock
        )
        for name, series in measured.series.items():
            self._rows[name] = replace(self._rows[name], ms=_median(series, calls[name]), turns=measured.rounds)


def _median(series: Series, opened: Opened) -> float:
    return float(np.median(series.latencies_ms)) / opened.candidate.lanes


def _wrong(candidate: Candidate, near: Nearness | None) -> str:
    """Why a candidate's numbers disqualify it, or "". Without an exact result to hold them against, all do."""
    if near is None:
        return f"there is no {EXACT} result to hold it against"
    if candidate.precision == EXACT:
        photograph, db = next(iter(near.psnr_db.items()))
        return "" if db >= MIN_PSNR_DB else f"{db:.1f} dB from the first engine on a made-up {photograph}"
    return "" if near.passes else f"it is {near}"
